// csr ops on CUDA: tensors -> view -> launcher, on torch's current device and stream.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "kernels/cuda/csr.cuh"
#include "ops/csr_args.h"

namespace sparseprune {
namespace {

// libtorch_cuda has this function; a CPU-only libtorch, which this must link against where no
// CUDA torch is installed, does not. So it is looked up when first needed.
void* current_stream(const Tensor& x) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  check(get, "csr: torch's CUDA library must be loaded; install a torch build with CUDA");
  void* stream = nullptr;
  check(get(x.get_device_index(), &stream) == 0, "csr: torch gave no current CUDA stream");
  return stream;
}

void check_launch(const char* op, int error) {
  check(error == 0, op, ": the kernel did not start: ", cuda_error_text(error));
}

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& columns,
              const Tensor& counts, const Tensor& starts, const std::optional<Tensor>& bias,
              int64_t rows, int64_t cols, int64_t block, std::optional<double> low,
              std::optional<double> high) {
  const char* op = "csr_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const Csr w = view_csr(op, x_any, {values, columns, counts, starts, bias}, rows, cols, block);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  std::visit(
      [&](const auto& weight) {
        check_launch(
            op, csr_linear_cuda(weight, x.const_data_ptr<float>(), tokens, bias_data(bias),
                                y.mutable_data_ptr<float>(), current_stream(x), clamp(low, high)));
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
        check_launch(
            op, csr_conv2d_cuda(weight, x.const_data_ptr<float>(), shape, bias_data(bias),
                                y.mutable_data_ptr<float>(), current_stream(x), clamp(low, high)));
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
