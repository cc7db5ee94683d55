// sell ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/sell.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/sell_layers.h"
#include "ops/sell_args.h"
#include "ops/torch_threads.h"

namespace sparseprune {
namespace {

Tensor linear(const Tensor& x_any, const Tensor& values_any, const Tensor& columns,
              const Tensor& windows, const Tensor& starts, const std::optional<Tensor>& bias_any,
              int64_t rows, int64_t cols, std::optional<double> low, std::optional<double> high) {
  const char* op = "sell_linear";
  const int64_t tokens = linear_tokens(op, x_any, cols);
  Sell w = view_sell(op, x_any, {values_any, columns, windows, starts, bias_any}, rows, cols);
  const Tensor x = in_float(dense_copy(x_any)), values = in_float(values_any);
  const std::optional<Tensor> bias = in_float(bias_any);
  w.values = values.const_data_ptr<float>();
  Tensor y = linear_output(x, rows);
  if (y.numel())
    sell_linear(w, x.const_data_ptr<float>(), tokens, bias_data(bias), y.mutable_data_ptr<float>(),
                torch_threads(), clamp(low, high));
  return in_dtype_of(x_any, y);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("sell_linear", TORCH_BOX(&sparseprune::linear));
}
