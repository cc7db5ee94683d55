// sell kernels for AVX2 and FMA: no instruction picks from a window of 32, so inputs are gathered.
#include <immintrin.h>

#include "kernels/cpu/sell.h"

namespace {

using sparseprune::Clamp;
using sparseprune::Sell;
using W = Sell;
constexpr int kTogether = 4;  // tokens

constexpr int kWidth = 8;

// A half of a slice, 8 rows. Gathered with a mask: a hole reads nothing and adds nothing.
template <int kTokens>
void multiply_half(const Sell& w, int64_t unit, int first, const float* x, int64_t x_stride,
                   float (*sums)[Sell::kRows]) {
  __m256 sum[kTokens];
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = w.starts[unit]; i < w.starts[unit + 1]; ++i) {
    const float* window = x + w.windows[i] * Sell::kBegin;
    const int64_t at = i * Sell::kRows + first;
    const __m256i columns =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.columns + at)));
    const __m256 kept = _mm256_castsi256_ps(_mm256_slli_epi32(columns, 24));  // the sign
    const __m256i places = _mm256_and_si256(columns, _mm256_set1_epi32(Sell::kWindow - 1));
    const __m256 values =
        _mm256_blendv_ps(_mm256_setzero_ps(), _mm256_loadu_ps(w.values + at), kept);
    for (int t = 0; t < kTokens; ++t)
      sum[t] = _mm256_fmadd_ps(values,
                               _mm256_mask_i32gather_ps(_mm256_setzero_ps(), window + t * x_stride,
                                                        places, kept, sizeof(float)),
                               sum[t]);
  }
  for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(sums[t] + first, sum[t]);
}

template <int kTokens>
void multiply_unit(const Sell& w, int64_t unit, int live, const float* x, int64_t x_stride,
                   float (*sums)[Sell::kRows]) {
  for (int first = 0; first < live; first += kWidth)
    multiply_half<kTokens>(w, unit, first, x, x_stride, sums);
}

#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const SellKernels sell_avx2;
const SellKernels sell_avx2 = {linear};
}  // namespace sparseprune
