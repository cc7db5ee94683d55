// What the csr ops of every device check and view alike: tensors in, plain structs out.
#pragma once
#include <variant>

#include "formats/conv2d.h"
#include "formats/csr.h"
#include "ops/args.h"

namespace sparseprune {

using Csr = std::variant<CsrRows, CsrGroups, CsrSorted>;

// The five arguments that every csr op takes between x and its sizes.
struct CsrTensors {
  const Tensor &values, &columns, &counts, &starts;
  const std::optional<Tensor>& bias;
};

inline void check_packed(const char* op, const char* argument, const Tensor& t, const Tensor& x,
                         ScalarType dtype, int64_t at_least) {
  check_buffer(op, "Csr.pack", argument, t, x, dtype, at_least);
}

// Layout "rows" with values in the dtype of x; that T is its type is up to callers.
template <typename T>
CsrRowsOf<T> view_rows(const char* op, const Tensor& x, const CsrTensors& t, int64_t rows,
                       int64_t cols) {
  const ScalarType dtype = x.scalar_type();
  check_float_or_half(op, x, t.values);
  check(rows >= 0 && cols >= 0, op, ": rows, cols and block must be as made by Csr.pack, got ",
        rows, ", ", cols, ", 0");
  if (t.bias) check_packed(op, "bias", *t.bias, x, dtype, rows);
  check_packed(op, "values", t.values, x, dtype, 0);
  check_packed(op, "columns", t.columns, x, ScalarType::UInt16, t.values.numel());
  check_packed(op, "starts", t.starts, x, ScalarType::Int, rows + 1);
  check_end(op, "values", t.values, t.starts, rows);
  return {static_cast<const T*>(t.values.const_data_ptr()),
          static_cast<const uint16_t*>(t.columns.const_data_ptr()),
          t.starts.const_data_ptr<int32_t>(), rows, cols};
}

// Groups and sorted: columns and counts are bytes, and every (block, unit of rows) has two starts,
// of values and of columns.
template <typename W>
Csr view_blocks(const char* op, const Tensor& x, const CsrTensors& t, int64_t counts,
                int64_t starts, W w) {
  check_packed(op, "columns", t.columns, x, ScalarType::Byte, 0);
  check_packed(op, "counts", t.counts, x, ScalarType::Byte, counts);
  check_packed(op, "starts", t.starts, x, ScalarType::Int, starts);
  check_end(op, "values", t.values, t.starts, starts - 2);
  check_end(op, "columns", t.columns, t.starts, starts - 1);
  w.values = t.values.const_data_ptr<float>();
  w.columns = t.columns.const_data_ptr<uint8_t>();
  w.counts = t.counts.const_data_ptr<uint8_t>();
  w.starts = t.starts.const_data_ptr<int32_t>();
  return w;
}

// The view of a packed weight. Block 0 means the layout "rows"; else the last dimension of counts
// tells the layout.
inline Csr view_csr(const char* op, const Tensor& x, const CsrTensors& t, int64_t rows,
                    int64_t cols, int64_t block) {
  check(x.scalar_type() == ScalarType::Float, op,
        ": x must be float32; convert it with .float() or keep the layer dense");
  check(rows >= 0 && cols >= 0 && block >= 0 && block <= CsrGroups::kMaxBlock, op,
        ": rows, cols and block must be as made by Csr.pack, got ", rows, ", ", cols, ", ", block);
  if (t.bias) check_packed(op, "bias", *t.bias, x, ScalarType::Float, rows);
  check_packed(op, "values", t.values, x, ScalarType::Float, 0);
  if (block == 0) return view_rows<float>(op, x, t, rows, cols);
  const int64_t last = t.counts.dim() == 3 ? t.counts.size(2) : 0;
  check(last == CsrGroups::kPatterns || last == CsrGroups::kNumbered || last == CsrSorted::kPair,
        op,
        ": counts must be [blocks, groups, 15 or 19] or [blocks, pairs, 5], as made by Csr.pack");
  if (last == CsrSorted::kPair) {
    const CsrSorted w{nullptr, nullptr, nullptr, nullptr, rows, cols, block};
    const int64_t cells = w.blocks() * w.segments();
    return view_blocks(op, x, t, w.blocks() * w.pairs() * w.kPair, 2 * (cells + 1), w);
  }
  const CsrGroups w{nullptr, nullptr, nullptr, nullptr, rows, cols, block, last};
  check(rows % w.unit() == 0 || !w.numbered(), op, ": rows must be whole segments of ",
        CsrGroups::kSegment, ", as made by Csr.pack, got ", rows);
  const int64_t cells = w.blocks() * w.groups();
  return view_blocks(op, x, t, cells * w.cell, 2 * (cells + 1), w);
}

inline Conv2dShape conv2d_shape(const char* op, const Tensor& x, int64_t rows, int64_t cols,
                                const Ints& kernel_size, const Ints& stride, const Ints& padding,
                                const Ints& dilation, int64_t groups) {
  check(x.dim() == 4, op, ": x must be [batch, channels, height, width], got ", x.dim(),
        " dimensions; add a batch dimension with x.unsqueeze(0)");
  for (const Ints* pair : {&kernel_size, &stride, &padding, &dilation})
    check(pair->size() == 2, op, ": kernel_size, stride, padding and dilation must be pairs, got ",
          pair->size(), " numbers; repeat a single one");
  const Conv2dShape s{x.size(0),      x.size(1),   x.size(2), x.size(3),  kernel_size[0],
                      kernel_size[1], stride[0],   stride[1], padding[0], padding[1],
                      dilation[0],    dilation[1], groups,    rows};
  check(s.kernel_h > 0 && s.kernel_w > 0 && s.stride_h > 0 && s.stride_w > 0 && s.dilation_h > 0 &&
            s.dilation_w > 0 && s.padding_h >= 0 && s.padding_w >= 0,
        op, ": kernel_size, stride and dilation must be positive, padding not negative");
  check(groups > 0 && rows % groups == 0 && s.channels * s.kernel_h * s.kernel_w == cols * groups,
        op, ": x must have ", cols * groups / (s.kernel_h * s.kernel_w), " channels, got ",
        s.channels);
  check(s.height + 2 * s.padding_h > s.dilation_h * (s.kernel_h - 1) &&
            s.width + 2 * s.padding_w > s.dilation_w * (s.kernel_w - 1),
        op, ": the padded input must be as large as the dilated kernel, got ",
        s.height + 2 * s.padding_h, " x ", s.width + 2 * s.padding_w, "; enlarge the input");
  check(s.channels * (s.height + 2 * s.padding_h) * (s.width + 2 * s.padding_w) < INT32_MAX, op,
        ": a padded image must have less than 2^31 elements; split it");
  return s;
}

// Rows of a layout that must not belong to two groups of a convolution.
inline int64_t bound_rows(const CsrRows&) { return 1; }
inline int64_t bound_rows(const CsrGroups& w) { return w.unit(); }
inline int64_t bound_rows(const CsrSorted&) { return CsrSorted::kRows; }

template <typename W>
void check_conv_groups(const char* op, const W& w, int64_t groups) {
  check(groups == 1 || w.rows / groups % bound_rows(w) == 0, op,
        ": outputs per group must divide by ", bound_rows(w), " in this layout, got ",
        w.rows / groups, "; pack with the layout \"rows\"");
}

inline Tensor conv2d_output(const Tensor& x, const Conv2dShape& s) {
  return torch::stable::new_empty(x, Ints{s.batch, s.rows, s.out_height(), s.out_width()});
}

}  // namespace sparseprune
