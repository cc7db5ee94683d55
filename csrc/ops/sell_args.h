// What every op that takes a sell weight checks and views: tensors in, a plain struct out.
#pragma once
#include "formats/sell.h"
#include "ops/args.h"

namespace sparseprune {

// The arguments between x and the sizes.
struct SellTensors {
  const Tensor &values, &columns, &windows, &starts;
  const std::optional<Tensor>& bias;
};

// The view of a packed weight; its values, of the dtype of x, are left to callers.
inline Sell view_sell(const char* op, const Tensor& x, const SellTensors& t, int64_t rows,
                      int64_t cols) {
  check_float_or_half(op, x, t.values);
  check(rows >= 0 && cols >= 0, op, ": rows and cols must be as made by Sell.pack, got ", rows,
        ", ", cols);
  const auto check_packed = [&](const char* argument, const Tensor& tensor, ScalarType dtype,
                                int64_t at_least) {
    check_buffer(op, "Sell.pack", argument, tensor, x, dtype, at_least);
  };
  Sell w{nullptr, nullptr, nullptr, nullptr, rows, cols};
  if (t.bias) check_packed("bias", *t.bias, x.scalar_type(), rows);
  check_packed("values", t.values, x.scalar_type(), t.windows.numel() * Sell::kRows);
  check_packed("columns", t.columns, ScalarType::Byte, t.windows.numel() * Sell::kRows);
  check_packed("windows", t.windows, ScalarType::UInt16, 0);
  check_packed("starts", t.starts, ScalarType::Int, w.units() + 1);
  check_end(op, "windows", t.windows, t.starts, w.units());
  w.columns = t.columns.const_data_ptr<uint8_t>();
  w.windows = static_cast<const uint16_t*>(t.windows.const_data_ptr());
  w.starts = t.starts.const_data_ptr<int32_t>();
  return w;
}

}  // namespace sparseprune
