// n:m kernels for AVX-512: 16 floats a vector, 32 registers.
#include <immintrin.h>

#include "kernels/cpu/nm.h"

namespace {

constexpr int kWidth = 16, kVectors = 4, kSums = 16;
constexpr int64_t kAhead = 1024;  // floats, 4 KB

// sum[t] += the products of `units` times 32 columns of 2:4. Their 16 values are one vector, the
// columns two: one permutation of both takes what the values multiply.
template <int kTokens>
inline void dot_2_of_4(const float* values, const uint8_t* places, int64_t units, const float* x,
                       int64_t x_stride, float* sum) {
  const __m512i shifts =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i group = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  __m512 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u) {
    int bits;
    __builtin_memcpy(&bits, places + 4 * u, 4);
    const __m512i all = _mm512_srlv_epi32(_mm512_set1_epi32(bits), shifts);
    const __m512i index = _mm512_or_si512(_mm512_and_si512(all, _mm512_set1_epi32(3)), group);
    __builtin_prefetch(values + 16 * u + kAhead);
    const __m512 own = _mm512_loadu_ps(values + 16 * u);
    for (int t = 0; t < kTokens; ++t) {
      const float* near = x + t * x_stride + 32 * u;
      const __m512 read =
          _mm512_permutex2var_ps(_mm512_loadu_ps(near), index, _mm512_loadu_ps(near + 16));
      acc[t] = _mm512_fmadd_ps(own, read, acc[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) sum[t] += _mm512_reduce_add_ps(acc[t]);
}

#include "kernels/cpu/nm_body.inc"

}  // namespace

namespace sparseprune {
extern const NmKernels nm_avx512;
const NmKernels nm_avx512 = {dots, panels};
}  // namespace sparseprune
