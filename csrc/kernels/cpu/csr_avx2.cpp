// csr kernels for AVX2 and FMA: 8 floats a vector, 16 registers.
#include <immintrin.h>

#include "kernels/cpu/csr.h"

namespace {

constexpr int kWidth = 8, kVectors = 2;
typedef float Vec __attribute__((vector_size(4 * kWidth), may_alias));

inline float reduce(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// low where v < low, high where v > high, else v: the second operand comes back where one is NaN.
inline Vec limit(Vec v, Vec low, Vec high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }

// Four floats in both halves, and one of them in all lanes: one load in place of four.
inline Vec load_four(const float* p) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
template <int k>
inline Vec lane(Vec four) {
  return _mm256_permute_ps(four, k * 0x55);
}

// __builtin_prefetch(p, 1) fetches for reading where prefetchw has no flag of its own.
inline void prefetch_for_write(const float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }

// sum[t] = sum_i values[i] * x[t * x_stride + columns[i]]
template <int kTokens>
inline void dot(const float* values, const uint16_t* columns, int64_t count, const float* x,
                int64_t x_stride, float* sum) {
  __m256 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i index =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns + i)));
    const __m256 w = _mm256_loadu_ps(values + i);
    for (int t = 0; t < kTokens; ++t)
      acc[t] = _mm256_fmadd_ps(w, _mm256_i32gather_ps(x + t * x_stride, index, 4), acc[t]);
  }
  for (int t = 0; t < kTokens; ++t) {
    sum[t] = reduce(acc[t]);
    for (int64_t j = i; j < count; ++j) sum[t] += values[j] * x[t * x_stride + columns[j]];
  }
}

#include "kernels/cpu/csr_body.inc"
#include "kernels/cpu/csr_inserts.inc"

}  // namespace

namespace sparseprune {
extern const CsrKernels csr_avx2;
const CsrKernels csr_avx2 = {kVectors, gather<ByDot>, gather<ByInserts>, rows, groups, sorted};
}  // namespace sparseprune
