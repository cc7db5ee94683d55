// nm ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/nm.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/nm_layers.h"
#include "ops/nm_args.h"
#include "ops/torch_threads.h"

namespace sparseprune {
namespace {

Tensor linear(const Tensor& x_any, const Tensor& values_any, const Tensor& places,
              const std::optional<Tensor>& bias_any, int64_t rows, int64_t cols, int64_t n,
              int64_t m, std::optional<double> low, std::optional<double> high) {
  const char* op = "nm_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  Nm<float> w = view_nm<float>(op, x_any, {values_any, places, bias_any}, rows, cols, n, m, 1);
  const Tensor x = in_float(dense_copy(x_any)), values = in_float(values_any);
  const std::optional<Tensor> bias = in_float(bias_any);
  w.values = values.const_data_ptr<float>();
  Tensor y = linear_output(x, rows);
  if (y.numel())
    nm_linear(w, x.const_data_ptr<float>(), tokens, bias_data(bias), y.mutable_data_ptr<float>(),
              torch_threads(), clamp(low, high));
  return in_dtype_of(x_any, y);
}

Tensor conv2d(const Tensor& x_any, const Tensor& values_any, const Tensor& places,
              const std::optional<Tensor>& bias_any, int64_t rows, int64_t cols, int64_t n,
              int64_t m, int64_t taps, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
              int64_t groups, std::optional<double> low, std::optional<double> high) {
  const char* op = "nm_conv2d";
  const Conv2dShape shape =
      conv2d_shape(op, x_any, rows, cols, kernel_size, stride, padding, dilation, groups);
  Nm<float> w = view_nm<float>(op, x_any, {values_any, places, bias_any}, rows, cols, n, m, taps);
  check_taps(op, taps, shape);
  const Tensor x = in_float(dense_image(x_any)), values = in_float(values_any);
  const std::optional<Tensor> bias = in_float(bias_any);
  w.values = values.const_data_ptr<float>();
  Tensor y = image_output(x, shape);
  if (y.numel())
    nm_conv2d(w, x.const_data_ptr<float>(), image_strides(x), shape, bias_data(bias),
              y.mutable_data_ptr<float>(), image_strides(y), torch_threads(), clamp(low, high));
  return in_dtype_of(x_any, y);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("nm_linear", TORCH_BOX(&sparseprune::linear));
  library.impl("nm_conv2d", TORCH_BOX(&sparseprune::conv2d));
}
