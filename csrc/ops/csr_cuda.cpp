// csr ops on CUDA: tensors -> view -> launcher, on torch's current device and stream.
#include <torch/csrc/stable/library.h>

#include "kernels/cuda/csr.cuh"
#include "kernels/cuda/csr_rows.cuh"
#include "ops/csr_args.h"
#include "ops/cuda_stream.h"
#include "ops/element.h"

namespace sparseprune {
namespace {

// The layout "rows", in every dtype.
Tensor linear_rows(const char* op, const Tensor& x_any, const CsrTensors& t, int64_t rows,
                   int64_t cols, Clamp limits) {
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const CsrRowsOf<void> w = view_rows<void>(op, x_any, t, rows, cols);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  check(aligned(w.values) && aligned(w.columns), op,
        ": values and columns must be aligned to 16 bytes; clone() them");
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  check_launch(op, csr_rows_linear_cuda(w, element(x), x.const_data_ptr(), tokens, any_data(t.bias),
                                        y.mutable_data_ptr(), current_stream(op, x), limits));
  return y;
}

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& columns,
              const Tensor& counts, const Tensor& starts, const std::optional<Tensor>& bias,
              int64_t rows, int64_t cols, int64_t block, std::optional<double> low,
              std::optional<double> high) {
  const char* op = "csr_linear";
  if (block == 0)
    return linear_rows(op, x_any, {values, columns, counts, starts, bias}, rows, cols,
                       clamp(low, high));
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const Csr w = view_csr(op, x_any, {values, columns, counts, starts, bias}, rows, cols, block);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  std::visit(
      [&](const auto& weight) {
        check_launch(op, csr_linear_cuda(weight, x.const_data_ptr<float>(), tokens, bias_data(bias),
                                         y.mutable_data_ptr<float>(), current_stream(op, x),
                                         clamp(low, high)));
      },
      w);
  return y;
}

Tensor conv2d(const Tensor& x_any, const Tensor& values, const Tensor& columns,
              const Tensor& counts, const Tensor& starts, const std::optional<Tensor>& bias,
              int64_t rows, int64_t cols, int64_t block, Ints kernel_size, Ints stride,
              Ints padding, Ints dilation, int64_t groups, std::optional<double> low,
              std::optional<double> high) {
  const char* op = "csr_conv2d";
  const Conv2dShape shape =
      conv2d_shape(op, x_any, rows, cols, kernel_size, stride, padding, dilation, groups);
  const Csr w = view_csr(op, x_any, {values, columns, counts, starts, bias}, rows, cols, block);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = conv2d_output(x, shape);
  if (y.numel() == 0) return y;
  std::visit(
      [&](const auto& weight) {
        check_conv_groups(op, weight, groups);
        check_launch(op, csr_conv2d_cuda(weight, x.const_data_ptr<float>(), shape, bias_data(bias),
                                         y.mutable_data_ptr<float>(), current_stream(op, x),
                                         clamp(low, high)));
      },
      w);
  return y;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, library) {
  library.impl("csr_linear", TORCH_BOX(&sparseprune::linear));
  library.impl("csr_conv2d", TORCH_BOX(&sparseprune::conv2d));
}
