// What the block ops of every device check and view alike: tensors in, plain structs out.
#pragma once
#include "formats/block.h"
#include "ops/images.h"

namespace sparseprune {

constexpr int64_t kLargestSide = 256;

// The four arguments that every block op takes between x and its sizes.
struct BlockTensors {
  const Tensor &values, &columns, &starts;
  const std::optional<Tensor>& bias;
};

// The view of a packed weight, whose values have the dtype of x; that T is its type is up to
// callers.
template <typename T>
Block<T> view_block(const char* op, const Tensor& x, const BlockTensors& t, int64_t rows,
                    int64_t cols, int64_t taps) {
  const auto check_packed = [&](const char* argument, const Tensor& tensor, ScalarType dtype,
                                int64_t at_least) {
    check_buffer(op, "Block.pack", argument, tensor, x, dtype, at_least);
  };
  check_float_or_half(op, x, t.values);
  check(rows >= 0 && cols >= 0, op, ": rows and cols must be as made by Block.pack, got ", rows,
        ", ", cols);
  const auto side = [&](int64_t i) { return t.values.dim() == 3 ? t.values.size(i) : 0; };
  check(std::min(side(1), side(2)) >= 1 && std::max(side(1), side(2)) <= kLargestSide, op,
        ": values must be [blocks, rows, columns] with sides of 1 to ", kLargestSide,
        ", as made by Block.pack");
  Block<T> w{nullptr, nullptr, nullptr, rows, cols, side(1), side(2), taps};
  if (t.bias) check_packed("bias", *t.bias, x.scalar_type(), rows);
  check_packed("values", t.values, x.scalar_type(), 0);
  check_packed("columns", t.columns, ScalarType::Int, t.values.size(0));
  check_packed("starts", t.starts, ScalarType::Int, w.block_rows() + 1);
  check_end(op, "columns", t.columns, t.starts, w.block_rows());
  w.values = static_cast<const T*>(t.values.const_data_ptr());
  w.columns = t.columns.const_data_ptr<int32_t>();
  w.starts = t.starts.const_data_ptr<int32_t>();
  return w;
}

template <typename T>
void check_block_conv(const char* op, const Block<T>& w, const Conv2dShape& s) {
  check_taps(op, w.taps, s);
  check(s.groups == 1 || w.rows / s.groups % w.r == 0, op,
        ": outputs per group must divide by the ", w.r, " rows of a block, got ", w.rows / s.groups,
        "; pack the weight with its number of groups");
}

}  // namespace sparseprune
