// bitmask ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/bitmask.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/bitmask_layers.h"
#include "ops/bitmask_args.h"
#include "ops/torch_threads.h"

namespace sparseprune {
namespace {

Tensor linear(const Tensor& x_any, const Tensor& values, const Tensor& masks, const Tensor& starts,
              const std::optional<Tensor>& bias, int64_t rows, int64_t cols,
              std::optional<double> low, std::optional<double> high) {
  const char* op = "bitmask_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  const Bitmask w = view_bitmask(op, x_any, values, masks, starts, bias, rows, cols);
  const Tensor x = dense_copy(x_any);
  Tensor y = linear_output(x, rows);
  if (y.numel() == 0) return y;
  bitmask_linear(w, x.const_data_ptr<float>(), tokens, bias_data(bias), y.mutable_data_ptr<float>(),
                 torch_threads(), clamp(low, high));
  return y;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("bitmask_linear", TORCH_BOX(&sparseprune::linear));
}
