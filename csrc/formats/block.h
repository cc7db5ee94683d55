// Sparse weight W [rows, cols] of blocks, those with a nonzero stored whole. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

// A grid of r x c blocks starts at the first weight; what a block has past the last row or column
// is zero. Blocks lie row of blocks by row of blocks, each by itself and row-major, so that a
// kernel copies a block in one piece and multiplies it as a small dense matrix.
//
//   W   [a b . . e]     r = c = 2     values  [a b | e 0 | g h]
//       [c d . . f]                           [c d | f 0 | i j]
//       [. . g h .]                   columns [0     2     1  ]
//       [. . i j .]                   starts  [0 2 3]
//
// Columns of a convolution's W are (channel, ky, kx), or (ky, kx, channel): `taps` is then the
// number of (ky, kx), else 1. In the second order a block reads neighbouring channels of one tap.
template <typename T>
struct Block {
  const T* values;         // [blocks, r, c]
  const int32_t* columns;  // [blocks], column of blocks, ascending within a row of blocks
  const int32_t* starts;   // [block_rows + 1], where a row of blocks begins
  int64_t rows, cols;      // dense shape
  int64_t r, c;            // sides of a block
  int64_t taps = 1;

  constexpr int64_t block_rows() const { return (rows + r - 1) / r; }
};

}  // namespace sparseprune
