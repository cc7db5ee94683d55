// sell kernels for AVX-512: a slice is a vector, and one permutation picks its inputs.
#include <immintrin.h>

#include "kernels/cpu/sell.h"

namespace {

using sparseprune::Clamp;
using sparseprune::Sell;
using W = Sell;
constexpr int kTogether = 8;  // tokens

constexpr int64_t kAhead = 64;  // steps: 4 KB of values

// Adds step i. Masked: a hole adds nothing, even where x is NaN.
template <int kTokens>
[[gnu::always_inline]] inline void add_step(const Sell& w, int64_t i, const float* x,
                                            int64_t x_stride, __m512 (&sums)[kTokens]) {
  const int64_t at = i * Sell::kRows;
  const float* window = x + w.windows[i] * Sell::kBegin;
  const __m512 values = _mm512_loadu_ps(w.values + at);
  const __m512i columns =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.columns + at)));
  const __mmask16 kept = _mm512_test_epi32_mask(columns, _mm512_set1_epi32(Sell::kKept));
  __builtin_prefetch(w.values + at + kAhead * Sell::kRows);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const float* from = window + t * x_stride;
    const __m512 in = _mm512_permutex2var_ps(_mm512_loadu_ps(from), columns,
                                             _mm512_loadu_ps(from + Sell::kBegin));
    sums[t] = _mm512_mask3_fmadd_ps(values, in, sums[t], kept);
  }
}

// Two chains of sums, for the latency of an FMA.
template <int kTokens>
void multiply_unit(const Sell& w, int64_t unit, int, const float* x, int64_t x_stride,
                   float (*sums)[Sell::kRows]) {
  __m512 even[kTokens], odd[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) even[t] = odd[t] = _mm512_setzero_ps();
  int64_t i = w.starts[unit];
  const int64_t end = w.starts[unit + 1];
  for (; i + 2 <= end; i += 2) {
    add_step(w, i, x, x_stride, even);
    add_step(w, i + 1, x, x_stride, odd);
  }
  if (i < end) add_step(w, i, x, x_stride, even);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(sums[t], _mm512_add_ps(even[t], odd[t]));
}

#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const SellKernels sell_avx512;
const SellKernels sell_avx512 = {linear};
}  // namespace sparseprune
