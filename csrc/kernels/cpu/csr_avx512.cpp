// csr kernels for AVX-512 (F, BW, VL, DQ): 16 floats a vector, 32 registers.
#include <immintrin.h>

#include "kernels/cpu/csr.h"

namespace {

constexpr int kWidth = 16, kVectors = 5;  // one more than a panel as a rule has
typedef float Vec __attribute__((vector_size(4 * kWidth), may_alias));
constexpr int64_t kAhead = 1024;  // floats, 4 KB

// low where v < low, high where v > high, else v: the second operand comes back where one is NaN.
inline Vec limit(Vec v, Vec low, Vec high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }

// Four floats in every quarter, and one of them in all lanes: one load in place of four.
inline Vec load_four(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
template <int k>
inline Vec lane(Vec four) {
  return _mm512_permute_ps(four, k * 0x55);
}

// __builtin_prefetch(p, 1) fetches for reading where prefetchw has no flag of its own.
inline void prefetch_for_write(const float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }

// sum[t] = sum_i values[i] * x[t * x_stride + columns[i]]
template <int kTokens>
inline void dot(const float* values, const uint16_t* columns, int64_t count, const float* x,
                int64_t x_stride, float* sum) {
  __m512 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 live = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    const __m512i index = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, columns + i));
    __builtin_prefetch(values + i + kAhead);  // the prefetcher of the CPU alone is slower
    if (i % 32 == 0) __builtin_prefetch(columns + i + 2 * kAhead);
    const __m512 w = _mm512_maskz_loadu_ps(live, values + i);
    for (int t = 0; t < kTokens; ++t) {
      const __m512 lanes =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), live, index, x + t * x_stride, 4);
      acc[t] = _mm512_fmadd_ps(w, lanes, acc[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_reduce_add_ps(acc[t]);
}

#include "kernels/cpu/csr_body.inc"
#include "kernels/cpu/csr_inserts.inc"

}  // namespace

namespace sparseprune {
extern const CsrKernels csr_avx512;
const CsrKernels csr_avx512 = {kVectors, gather<ByDot>, gather<ByInserts>, rows, groups, sorted};
}  // namespace sparseprune
