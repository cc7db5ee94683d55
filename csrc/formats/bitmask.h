// Unstructured sparse weight W [rows, cols]: one bit per position. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

// 64 rows form a unit. For every column of a unit, 64 bits say which of its rows have a nonzero
// there; the values follow in the order of the bits. A CPU kernel expands the values of 8 or 16
// rows into the lanes of a vector, a CUDA kernel gives each lane of a warp eight rows; either
// adds them times one input to the sums of those rows.
//
//   row 0   [a . e]     masks  [1 0 1 0 .. | 0 1 1 0 .. | 1 0 0 0 ..]   bit r is row r of the unit
//   row 1   [. c .]     values [a b        | c d        | e         ]
//   row 2   [b d .]     starts [0 5]
template <typename T>
struct BitmaskOf {
  static constexpr int kRows = 64;      // rows of a unit
  static constexpr int kMaskBytes = 8;  // of one column of a unit

  const T* values;        // [nonzeros], by unit, then column, then row
  const uint8_t* masks;   // [units, cols, 8], bit i of byte b: row 8 b + i of the unit
  const int32_t* starts;  // [units + 1], where a unit's values begin
  int64_t rows, cols;     // dense shape; bits of rows past the last are 0

  constexpr int64_t units() const { return (rows + kRows - 1) / kRows; }
};
using Bitmask = BitmaskOf<float>;

}  // namespace sparseprune
