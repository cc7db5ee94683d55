// What the ops of every format check and make alike.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "formats/clamp.h"
#include "ops/check.h"

namespace sparseprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// A buffer of a packed weight; `maker` is the function that makes it right.
inline void check_buffer(const char* op, const char* maker, const char* argument, const Tensor& t,
                         const Tensor& x, ScalarType dtype, int64_t at_least) {
  check(same_device(t, x), op, ": ", argument, " must be on the device of x; move the module too");
  check(t.scalar_type() == dtype && t.is_contiguous() && t.numel() >= at_least, op, ": ", argument,
        " must be as made by ", maker, ", contiguous and at least ", at_least, " long, got ",
        t.numel(), " elements (or another dtype); convert the model again");
}

// `t` must end where starts[place] says; else a kernel would read past it. Only the CPU can look.
inline void check_end(const char* op, const char* argument, const Tensor& t, const Tensor& starts,
                      int64_t place) {
  if (!starts.is_cpu()) return;
  const int32_t end = starts.const_data_ptr<int32_t>()[place];
  check(t.numel() == end, op, ": ", argument, " must have the ", end,
        " elements that starts counts, got ", t.numel(), "; convert the model again");
}

inline const float* bias_data(const std::optional<Tensor>& bias) {
  return bias ? bias->const_data_ptr<float>() : nullptr;
}

inline Clamp clamp(std::optional<double> low, std::optional<double> high) {
  Clamp c;
  if (low) c.low = static_cast<float>(*low);
  if (high) c.high = static_cast<float>(*high);
  return c;
}

inline Tensor dense_copy(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline bool float_or_half(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16;
}

// Of formats that hold all of these: x in the dtype of the weight's values.
inline void check_float_or_half(const char* op, const Tensor& x, const Tensor& values) {
  const auto name = [](ScalarType t) {
    return t == ScalarType::Half ? "float16" : t == ScalarType::BFloat16 ? "bfloat16" : "float32";
  };
  check(float_or_half(x.scalar_type()), op,
        ": x must be float32, float16 or bfloat16; convert it or keep the layer dense");
  const ScalarType held = values.scalar_type();
  check(!float_or_half(held) || held == x.scalar_type(), op, ": x must be ", name(held),
        ", the dtype of the weight, got ", name(x.scalar_type()), "; convert one of them");
}

// For kernels that are float32: half is widened for every call, and the result narrowed.
inline Tensor in_float(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
}

inline std::optional<Tensor> in_float(const std::optional<Tensor>& t) {
  return t ? std::optional(in_float(*t)) : t;
}

inline Tensor in_dtype_of(const Tensor& x, const Tensor& y) {
  return y.scalar_type() == x.scalar_type() ? y : torch::stable::to(y, x.scalar_type());
}

// Rows of x [..., cols], after checking its last dimension.
inline int64_t linear_tokens(const char* op, const Tensor& x, int64_t cols) {
  const int64_t last = x.dim() ? x.size(x.dim() - 1) : 0;
  check(last == cols && x.dim(), op, ": x must have ", cols,
        " features in its last dimension, got ", last);
  int64_t tokens = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) tokens *= x.size(i);
  return tokens;
}

inline Tensor linear_output(const Tensor& x, int64_t rows) {
  Ints shape(x.sizes().begin(), x.sizes().end());
  shape.back() = rows;
  return torch::stable::new_empty(x, shape);
}

}  // namespace sparseprune
