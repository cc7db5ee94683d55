// csr ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/csr.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/csr_layers.h"
#include "kernels/cpu/isa.h"
#include "ops/csr_args.h"
#include "ops/torch_threads.h"
#include "program/conv.h"

namespace sparseprune {
namespace {

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& columns,
              const Tensor& counts, const Tensor& starts, const std::optional<Tensor>& bias,
              int64_t rows, int64_t cols, int64_t block, std::optional<double> low,
              std::optional<double> high) {
  const char* op = "csr_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  if (block == 0 && x_any.scalar_type() != ScalarType::Float) {  // the kernels are float32
    view_rows<void>(op, x_any, {values, columns, counts, starts, bias}, rows, cols);
    return in_dtype_of(x_any, linear(in_float(x_any), in_float(values), columns, counts, starts,
                                     in_float(bias), rows, cols, block, low, high));
  }
  const Csr w = view_csr(op, x_any, {values, columns, counts, starts, bias}, rows, cols, block);
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  std::visit(
      [&](const auto& weight) {
        csr_linear(weight, x.const_data_ptr<float>(), tokens, bias_data(bias),
                   y.mutable_data_ptr<float>(), torch_threads(), clamp(low, high));
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
  const Tensor x = dense_copy(x_any);
  Tensor y = conv2d_output(x, shape);
  if (y.numel() == 0) return y;
  std::visit(
      [&](const auto& weight) {
        check_conv_groups(op, weight, groups);
        csr_conv2d(weight, x.const_data_ptr<float>(), shape, bias_data(bias),
                   y.mutable_data_ptr<float>(), torch_threads(), clamp(low, high));
      },
      w);
  return y;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("csr_linear", TORCH_BOX(&sparseprune::linear));
  library.impl("csr_conv2d", TORCH_BOX(&sparseprune::conv2d));
}

// For tests and benchmarks: "" returns to the environment's choice. Null, or what was wrong.
extern "C" __attribute__((visibility("default"))) const char* sparseprune_force_isa(
    const char* name) {
  static thread_local std::string error;
  try {
    sparseprune::force_isa(name);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
