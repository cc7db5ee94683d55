// bitmask for AVX-512 with VPOPCNTDQ, for CPUs whose expanding loads are slow (isa.h): every lane
// finds its value by counting the mask's bits below its own.
#include <immintrin.h>

#include "kernels/cpu/bitmask.h"

namespace {

using sparseprune::Bitmask;
using sparseprune::Clamp;
using W = Bitmask;
constexpr int kTogether = 4;  // tokens

constexpr int kWidth = 16;        // rows a vector
constexpr int64_t kAhead = 1024;  // floats; two lines a column hold its values up to half of them

// Lane i: the bits below bit i.
inline __m512i bits_below() {
  return _mm512_setr_epi32(0x0, 0x1, 0x3, 0x7, 0xf, 0x1f, 0x3f, 0x7f, 0xff, 0x1ff, 0x3ff, 0x7ff,
                           0xfff, 0x1fff, 0x3fff, 0x7fff);
}

template <typename T>
inline T load(const uint8_t* bytes) {
  T value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

inline int count(uint64_t bits) { return __builtin_popcountll(bits); }

// Columns at whose values a whole vector can be read, `after` floats following the last column's.
inline int64_t columns_with_room(const uint8_t* masks, int64_t cols, int64_t after) {
  while (cols > 0 && after < kWidth) after += count(load<uint64_t>(masks + 8 * --cols));
  return cols;
}

// Rows [0, kVectors * 16) of a unit. The sums stay in registers only if every loop over them is
// unrolled by name.
template <int kTokens, int kVectors>
struct Rows {
  __m512 sums[kVectors][kTokens];

  [[gnu::always_inline]] void clear() {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sums[v][t] = _mm512_setzero_ps();
  }

  // Adds one column. With kRoom a vector reads 16 floats, else those alone that its mask counts.
  // Masked: a pruned weight adds nothing, even where x is NaN.
  template <bool kRoom>
  [[gnu::always_inline]] void add(const uint8_t* masks, const float* values, const float* x,
                                  int64_t x_stride) {
    const uint64_t mask = load<uint64_t>(masks);
    __m512 in[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) in[t] = _mm512_set1_ps(x[t * x_stride]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const float* own = values + (v ? count(mask & ((uint64_t{1} << (v * kWidth)) - 1)) : 0);
      const __mmask16 kept = load<__mmask16>(masks + 2 * v);
      // Two vectors share a word of the mask.
      const __m512i word = _mm512_set1_epi32(load<int32_t>(masks + v / 2 * 4));
      const __m512i below = v % 2 ? _mm512_slli_epi32(bits_below(), kWidth) : bits_below();
      const __m512i places = _mm512_popcnt_epi32(_mm512_and_si512(word, below));
      const __mmask16 there = kRoom ? 0xffff : (1u << count(kept)) - 1;
      const __m512 packed = kRoom ? _mm512_loadu_ps(own) : _mm512_maskz_loadu_ps(there, own);
      const __m512 w = _mm512_permutexvar_ps(places, packed);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        sums[v][t] = _mm512_mask3_fmadd_ps(w, in[t], sums[v][t], kept);
    }
  }

  [[gnu::always_inline]] void store(float (*to)[Bitmask::kRows]) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(to[t] + v * kWidth, sums[v][t]);
  }
};

template <int kTokens, int kVectors>
void multiply_rows(const Bitmask& w, int64_t unit, const float* x, int64_t x_stride,
                   float (*sums)[Bitmask::kRows]) {
  const uint8_t* masks = w.masks + unit * w.cols * Bitmask::kMaskBytes;
  const float* values = w.values + w.starts[unit];
  const int64_t room = columns_with_room(masks, w.cols, w.starts[w.units()] - w.starts[unit + 1]);
  Rows<kTokens, kVectors> rows;
  rows.clear();
  for (int64_t c = 0; c < w.cols; ++c, masks += Bitmask::kMaskBytes) {
    __builtin_prefetch(values + kAhead), __builtin_prefetch(values + kAhead + 16);
    if (c < room)
      rows.template add<true>(masks, values, x + c, x_stride);
    else
      rows.template add<false>(masks, values, x + c, x_stride);
    values += count(load<uint64_t>(masks));
  }
  rows.store(sums);
}

template <int kTokens>
void multiply_unit(const Bitmask& w, int64_t unit, int live, const float* x, int64_t x_stride,
                   float (*sums)[Bitmask::kRows]) {
  constexpr decltype(&multiply_rows<kTokens, 1>) some[] = {
      multiply_rows<kTokens, 1>, multiply_rows<kTokens, 2>, multiply_rows<kTokens, 3>,
      multiply_rows<kTokens, 4>};
  some[(live - 1) / kWidth](w, unit, x, x_stride, sums);
}

#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const BitmaskKernels::Linear bitmask_avx512vpopcntdq;
const BitmaskKernels::Linear bitmask_avx512vpopcntdq = linear;
}  // namespace sparseprune
