// nm ops on CUDA: tensors -> view -> launcher, on torch's current device and stream.
#include <torch/csrc/stable/library.h>

#include "kernels/cuda/nm.cuh"
#include "ops/cuda_stream.h"
#include "ops/element.h"
#include "ops/nm_args.h"

namespace sparseprune {
namespace {

constexpr int64_t kMost = INT32_MAX - 256;  // rows, columns, tokens

// What the kernels demand beyond the CPU's; `tokens` are rows of x or output pixels.
void check_cuda(const char* op, const Nm<void>& w, int64_t tokens) {
  check(nm_cuda_serves(w.n, w.m), op, ": on CUDA n:m must be 2:4, got ", w.n, ":", w.m,
        "; pack the weight with Nm(2, 4) or take backend=\"triton\"");
  for (const void* p : {w.values, static_cast<const void*>(w.places)})
    check(reinterpret_cast<uintptr_t>(p) % 16 == 0, op,
          ": values and places must be aligned to 16 bytes; clone() them");
  check(w.rows < kMost && w.cols < kMost && tokens < kMost, op,
        ": rows, columns and tokens (or output pixels) must each be below ", kMost, ", got ",
        w.rows, ", ", w.cols, ", ", tokens, "; split the input");
}

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& places,
              const std::optional<Tensor>& bias, int64_t rows, int64_t cols, int64_t n, int64_t m,
              std::optional<double> low, std::optional<double> high) {
  const char* op = "nm_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const Nm<void> w = view_nm<void>(op, x_any, {values, places, bias}, rows, cols, n, m, 1);
  check_cuda(op, w, tokens);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  check_launch(op, nm_linear_cuda(w, element(x), x.const_data_ptr(), tokens, any_data(bias),
                                  y.mutable_data_ptr(), current_stream(op, x), clamp(low, high)));
  return y;
}

Tensor conv2d(const Tensor& x_any, const Tensor& values, const Tensor& places,
              const std::optional<Tensor>& bias, int64_t rows, int64_t cols, int64_t n, int64_t m,
              int64_t taps, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
              int64_t groups, std::optional<double> low, std::optional<double> high) {
  const char* op = "nm_conv2d";
  const Conv2dShape shape =
      conv2d_shape(op, x_any, rows, cols, kernel_size, stride, padding, dilation, groups);
  const Nm<void> w = view_nm<void>(op, x_any, {values, places, bias}, rows, cols, n, m, taps);
  check_taps(op, taps, shape);
  check_cuda(op, w, shape.batch * shape.out_height() * shape.out_width());
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_image(x_any);
  Tensor y = image_output(x, shape);
  if (y.numel() == 0) return y;
  check_launch(op, nm_conv2d_cuda(w, element(x), x.const_data_ptr(), image_strides(x), shape,
                                  any_data(bias), y.mutable_data_ptr(), image_strides(y),
                                  current_stream(op, x), clamp(low, high)));
  return y;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, library) {
  library.impl("nm_linear", TORCH_BOX(&sparseprune::linear));
  library.impl("nm_conv2d", TORCH_BOX(&sparseprune::conv2d));
}
