// bitmask ops on the CPU: tensors -> view -> kernel. Schemas live in sparseprune/ops/bitmask.py.
#include <torch/csrc/stable/library.h>

#include "kernels/cpu/bitmask_layers.h"
#include "ops/args.h"
#include "ops/torch_threads.h"

namespace sparseprune {
namespace {

Bitmask view_bitmask(const char* op, const Tensor& x, const Tensor& values, const Tensor& masks,
                     const Tensor& starts, const std::optional<Tensor>& bias, int64_t rows,
                     int64_t cols) {
  check(x.scalar_type() == ScalarType::Float, op,
        ": x must be float32; convert it with .float() or keep the layer dense");
  check(rows >= 0 && cols >= 0, op, ": rows and cols must be as made by Bitmask.pack, got ", rows,
        ", ", cols);
  const auto check_packed = [&](const char* argument, const Tensor& t, ScalarType dtype,
                                int64_t at_least) {
    check_buffer(op, "Bitmask.pack", argument, t, x, dtype, at_least);
  };
  const Bitmask sizes{nullptr, nullptr, nullptr, rows, cols};
  if (bias) check_packed("bias", *bias, ScalarType::Float, rows);
  check_packed("values", values, ScalarType::Float, 0);
  check_packed("masks", masks, ScalarType::Byte, sizes.units() * cols * Bitmask::kMaskBytes);
  check_packed("starts", starts, ScalarType::Int, sizes.units() + 1);
  check_end(op, "values", values, starts, sizes.units());
  return {values.const_data_ptr<float>(), masks.const_data_ptr<uint8_t>(),
          starts.const_data_ptr<int32_t>(), rows, cols};
}

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
