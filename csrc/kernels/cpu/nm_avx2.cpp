// n:m kernels for AVX2 and FMA: 8 floats a vector, 16 registers.
#include <immintrin.h>

#include "kernels/cpu/nm.h"

namespace {

constexpr int kWidth = 8, kVectors = 2, kSums = 8;

inline float across(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// sum[t] += the products of `units` times 32 columns of 2:4. Four values belong to eight columns,
// which are one vector of x: a permutation takes what they multiply.
template <int kTokens>
inline void dot_2_of_4(const float* values, const uint8_t* places, int64_t units, const float* x,
                       int64_t x_stride, float* sum) {
  const __m256i shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  const __m256i group = _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4), low = _mm256_set1_epi32(3);
  __m256 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
  for (int64_t i = 0; i < units * 16; i += 8) {
    const __m256i bits = _mm256_set1_epi32(places[i / 4] | places[i / 4 + 1] << 8);
    const __m256i index =
        _mm256_or_si256(_mm256_and_si256(_mm256_srlv_epi32(bits, shifts), low), group);
    const __m256 own = _mm256_loadu_ps(values + i);
    for (int t = 0; t < kTokens; ++t) {
      const float* near = x + t * x_stride + 2 * i;
      const __m256 first = _mm256_permutevar8x32_ps(_mm256_loadu_ps(near), index);
      const __m256 second = _mm256_permutevar8x32_ps(_mm256_loadu_ps(near + 8), index);
      acc[t] = _mm256_fmadd_ps(own, _mm256_blend_ps(first, second, 0xf0), acc[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) sum[t] += across(acc[t]);
}

#include "kernels/cpu/nm_body.inc"

}  // namespace

namespace sparseprune {
extern const NmKernels nm_avx2;
const NmKernels nm_avx2 = {dots, panels};
}  // namespace sparseprune
