// Half on the CPU: the kernels are float32, so it is widened for every call, the result narrowed.
#pragma once
#include "ops/args.h"

namespace sparseprune {

inline Tensor in_float(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
}

inline std::optional<Tensor> in_float(const std::optional<Tensor>& t) {
  return t ? std::optional(in_float(*t)) : t;
}

inline Tensor in_dtype_of(const Tensor& x, const Tensor& y) {
  return y.scalar_type() == x.scalar_type() ? y : torch::stable::to(y, x.scalar_type());
}

}  // namespace sparseprune
