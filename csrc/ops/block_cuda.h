// What the block ops of every CUDA backend share: tensors -> view -> launcher, on torch's current
// device and stream.
#pragma once
#include "kernels/cuda/block.cuh"
#include "ops/block_args.h"
#include "ops/cuda_stream.h"
#include "ops/element.h"

namespace sparseprune {

// What the kernels demand beyond the CPU's; `tokens` are rows of x or output pixels.
inline void check_block_cuda(const char* op, const Block<void>& w, int64_t tokens) {
  check(block_cuda_serves(w.r, w.c), op, ": on CUDA blocks must be 16x16, 32x32 or 64x64, got ",
        w.r, "x", w.c, "; pack the weight with Block(16, 16)");
  check(reinterpret_cast<uintptr_t>(w.values) % 16 == 0, op,
        ": values must be aligned to 16 bytes; clone() them");
  check(w.rows < INT32_MAX - kLargestSide && w.cols < INT32_MAX - kLargestSide &&
            tokens < INT32_MAX - kLargestSide,
        op, ": rows, columns and tokens (or output pixels) must each be below 2^31 - ",
        kLargestSide, ", got ", w.rows, ", ", w.cols, ", ", tokens, "; split the input");
}

// Launch: int(w, number of stored blocks, ...as block_linear_cuda).
template <auto launch>
Tensor block_linear(const Tensor& x_any, const Tensor& values, const Tensor& columns,
                    const Tensor& starts, const std::optional<Tensor>& bias, int64_t rows,
                    int64_t cols, std::optional<double> low, std::optional<double> high) {
  const char* op = "block_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const Block<void> w = view_block<void>(op, x_any, {values, columns, starts, bias}, rows, cols, 1);
  check_block_cuda(op, w, tokens);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  check_launch(op, launch(w, values.size(0), element(x), x.const_data_ptr(), tokens, any_data(bias),
                          y.mutable_data_ptr(), current_stream(op, x), clamp(low, high)));
  return y;
}

template <auto launch>
Tensor block_conv2d(const Tensor& x_any, const Tensor& values, const Tensor& columns,
                    const Tensor& starts, const std::optional<Tensor>& bias, int64_t rows,
                    int64_t cols, int64_t taps, Ints kernel_size, Ints stride, Ints padding,
                    Ints dilation, int64_t groups, std::optional<double> low,
                    std::optional<double> high) {
  const char* op = "block_conv2d";
  const Conv2dShape shape =
      conv2d_shape(op, x_any, rows, cols, kernel_size, stride, padding, dilation, groups);
  const Block<void> w =
      view_block<void>(op, x_any, {values, columns, starts, bias}, rows, cols, taps);
  check_block_conv(op, w, shape);
  check_block_cuda(op, w, shape.batch * shape.out_height() * shape.out_width());
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_image(x_any);
  Tensor y = image_output(x, shape);
  if (y.numel() == 0) return y;
  check_launch(op, launch(w, values.size(0), element(x), x.const_data_ptr(), image_strides(x),
                          shape, any_data(bias), y.mutable_data_ptr(), image_strides(y),
                          current_stream(op, x), clamp(low, high)));
  return y;
}

}  // namespace sparseprune
