// block ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/block.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/block_layers.h"
#include "ops/block_args.h"
#include "ops/torch_threads.h"

namespace sparseprune {
namespace {

Tensor linear(const Tensor& x_any, const Tensor& values_any, const Tensor& columns,
              const Tensor& starts, const std::optional<Tensor>& bias_any, int64_t rows,
              int64_t cols, std::optional<double> low, std::optional<double> high) {
  const char* op = "block_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  Block<float> w =
      view_block<float>(op, x_any, {values_any, columns, starts, bias_any}, rows, cols, 1);
  const Tensor x = in_float(dense_copy(x_any)), values = in_float(values_any);
  const std::optional<Tensor> bias = in_float(bias_any);
  w.values = values.const_data_ptr<float>();
  Tensor y = linear_output(x, rows);
  if (y.numel())
    block_linear(w, x.const_data_ptr<float>(), tokens, bias_data(bias), y.mutable_data_ptr<float>(),
                 torch_threads(), clamp(low, high));
  return in_dtype_of(x_any, y);
}

Tensor conv2d(const Tensor& x_any, const Tensor& values_any, const Tensor& columns,
              const Tensor& starts, const std::optional<Tensor>& bias_any, int64_t rows,
              int64_t cols, int64_t taps, Ints kernel_size, Ints stride, Ints padding,
              Ints dilation, int64_t groups, std::optional<double> low,
              std::optional<double> high) {
  const char* op = "block_conv2d";
  const Conv2dShape shape =
      conv2d_shape(op, x_any, rows, cols, kernel_size, stride, padding, dilation, groups);
  Block<float> w =
      view_block<float>(op, x_any, {values_any, columns, starts, bias_any}, rows, cols, taps);
  check_block_conv(op, w, shape);
  const Tensor x = in_float(dense_image(x_any)), values = in_float(values_any);
  const std::optional<Tensor> bias = in_float(bias_any);
  w.values = values.const_data_ptr<float>();
  Tensor y = image_output(x, shape);
  if (y.numel())
    block_conv2d(w, x.const_data_ptr<float>(), image_strides(x), shape, bias_data(bias),
                 y.mutable_data_ptr<float>(), image_strides(y), torch_threads(), clamp(low, high));
  return in_dtype_of(x_any, y);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("block_linear", TORCH_BOX(&sparseprune::linear));
  library.impl("block_conv2d", TORCH_BOX(&sparseprune::conv2d));
}
