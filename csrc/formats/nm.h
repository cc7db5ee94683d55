// Sparse weight W [rows, cols] with at most n nonzeros in every m columns of a row. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

// Groups of m columns start at column 0; each holds n values and their places in the group, which
// ascend. A group with fewer nonzeros holds zeros too, at its first free places. A row's groups are
// padded to a multiple of 16 with zeros at places 0 to n - 1.
//
//   W   [a . . b  . c . .  . d]    n = 2, m = 4    values  [a b  0 c  0 d  0 0  0 0 ..]
//                                                  places  [0 3  0 1  0 1  0 1  0 1 ..]
//
// Places take 2 bits each for m <= 4, else 4, the first in the low bits of a byte:
//
//   places  0 3  0 1   ->   byte  01 00 11 00
//
// So for 2:4 the places of 16 columns are 16 bits, lowest column first, and those of a row are one
// number per 32 columns: what mma.sp.m16n8k32 reads (kernels/cuda/mma_fragments.h).
//
// Columns of a convolution's W are (channel, ky, kx), or (ky, kx, channel): `taps` is then the
// number of (ky, kx), else 1. In the second order a group reads neighbouring channels of one tap.
template <typename T>
struct Nm {
  static constexpr int kMaxM = 16, kUnit = 16;

  const T* values;        // [rows, padded_groups * n]
  const uint8_t* places;  // [rows, place_bytes]
  int64_t rows, cols;     // dense shape
  int64_t n, m;
  int64_t taps = 1;

  constexpr int64_t groups() const { return (cols + m - 1) / m; }
  constexpr int64_t padded_groups() const { return (groups() + kUnit - 1) / kUnit * kUnit; }
  constexpr int64_t row_values() const { return padded_groups() * n; }
  constexpr int place_bits() const { return m <= 4 ? 2 : 4; }
  constexpr int64_t place_bytes() const { return row_values() * place_bits() / 8; }
};

}  // namespace sparseprune
