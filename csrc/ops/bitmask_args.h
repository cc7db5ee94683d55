// What every op that takes a bitmask weight checks and views: tensors in, a plain struct out.
#pragma once
#include "formats/bitmask.h"
#include "ops/args.h"

namespace sparseprune {

inline Bitmask view_bitmask(const char* op, const Tensor& x, const Tensor& values,
                            const Tensor& masks, const Tensor& starts,
                            const std::optional<Tensor>& bias, int64_t rows, int64_t cols) {
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

}  // namespace sparseprune
