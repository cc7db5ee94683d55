// A weight W [rows, cols] as torch holds it, row after row, float32. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

struct DenseMatrix {
  const float* values;  // [rows, cols]
  int64_t rows, cols;
};

}  // namespace sparseprune
