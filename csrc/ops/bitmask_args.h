// What every op that takes a bitmask weight checks and views: tensors in, a plain struct out.
#pragma once
#include "formats/bitmask.h"
#include "ops/args.h"

namespace sparseprune {

// The view of a packed weight, whose values have the dtype of x; that T is its type is up to
// callers.
template <typename T>
BitmaskOf<T> view_bitmask(const char* op, const Tensor& x, const Tensor& values,
                          const Tensor& masks, const Tensor& starts,
                          const std::optional<Tensor>& bias, int64_t rows, int64_t cols) {
  check_float_or_half(op, x, values);
  check(rows >= 0 && cols >= 0, op, ": rows and cols must be as made by Bitmask.pack, got ", rows,
        ", ", cols);
  const auto check_packed = [&](const char* argument, const Tensor& t, ScalarType dtype,
                                int64_t at_least) {
    check_buffer(op, "Bitmask.pack", argument, t, x, dtype, at_least);
  };
  const BitmaskOf<T> sizes{nullptr, nullptr, nullptr, rows, cols};
  if (bias) check_packed("bias", *bias, x.scalar_type(), rows);
  check_packed("values", values, x.scalar_type(), 0);
  check_packed("masks", masks, ScalarType::Byte, sizes.units() * cols * Bitmask::kMaskBytes);
  check_packed("starts", starts, ScalarType::Int, sizes.units() + 1);
  check_end(op, "values", values, starts, sizes.units());
  return {static_cast<const T*>(values.const_data_ptr()), masks.const_data_ptr<uint8_t>(),
          starts.const_data_ptr<int32_t>(), rows, cols};
}

}  // namespace sparseprune
