// bitmask ops on CUDA: tensors -> view -> launcher, on torch's current device and stream.
#include <torch/csrc/stable/library.h>

#include "kernels/cuda/bitmask.cuh"
#include "ops/bitmask_args.h"
#include "ops/cuda_stream.h"
#include "ops/element.h"

namespace sparseprune {
namespace {

// What the kernels demand beyond the CPU's.
void check_cuda(const char* op, const BitmaskOf<void>& w) {
  const auto aligned = [](const void* p, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(p) % to == 0;
  };
  check(aligned(w.values, 16), op, ": values must be aligned to 16 bytes; clone() them");
  check(aligned(w.masks, 8), op, ": masks must be aligned to 8 bytes; clone() them");
  check(w.rows < INT32_MAX && w.cols < INT32_MAX - 32, op,
        ": rows and columns must each be below 2^31 - 32, got ", w.rows, ", ", w.cols,
        "; split the layer");
}

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& masks, const Tensor& starts,
              const std::optional<Tensor>& bias, int64_t rows, int64_t cols,
              std::optional<double> low, std::optional<double> high) {
  const char* op = "bitmask_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const BitmaskOf<void> w = view_bitmask<void>(op, x_any, values, masks, starts, bias, rows, cols);
  check_cuda(op, w);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  check_launch(op,
               bitmask_linear_cuda(w, element(x), x.const_data_ptr(), tokens, any_data(bias),
                                   y.mutable_data_ptr(), current_stream(op, x), clamp(low, high)));
  return y;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, library) {
  library.impl("bitmask_linear", TORCH_BOX(&sparseprune::linear));
}
