// What the nm ops of every device check and view alike: tensors in, plain structs out.
#pragma once
#include "formats/nm.h"
#include "ops/images.h"

namespace sparseprune {

// The three arguments that every nm op takes between x and its sizes.
struct NmTensors {
  const Tensor &values, &places;
  const std::optional<Tensor>& bias;
};

// The view of a packed weight, whose values have the dtype of x; that T is its type is up to
// callers.
template <typename T>
Nm<T> view_nm(const char* op, const Tensor& x, const NmTensors& t, int64_t rows, int64_t cols,
              int64_t n, int64_t m, int64_t taps) {
  check_float_or_half(op, x, t.values);
  check(rows >= 0 && cols >= 0, op, ": rows and cols must be as made by Nm.pack, got ", rows, ", ",
        cols);
  check(1 <= n && n < m && m <= Nm<T>::kMaxM, op, ": n and m must be 1 <= n < m <= ", Nm<T>::kMaxM,
        ", got ", n, ", ", m);
  Nm<T> w{nullptr, nullptr, rows, cols, n, m, taps};
  const auto check_packed = [&](const char* argument, const Tensor& tensor, ScalarType dtype,
                                int64_t at_least) {
    check_buffer(op, "Nm.pack", argument, tensor, x, dtype, at_least);
  };
  if (t.bias) check_packed("bias", *t.bias, x.scalar_type(), rows);
  check_packed("values", t.values, x.scalar_type(), rows * w.row_values());
  check_packed("places", t.places, ScalarType::Byte, rows * w.place_bytes());
  w.values = static_cast<const T*>(t.values.const_data_ptr());
  w.places = t.places.const_data_ptr<uint8_t>();
  return w;
}

}  // namespace sparseprune
