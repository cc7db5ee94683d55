// Dense kernels for AVX2 and FMA: 8 floats a vector, 16 registers.
#include <immintrin.h>

#include "kernels/cpu/dense.h"

namespace {

constexpr int kWidth = 8, kVectors = 2, kSums = 8;  // kSums: vectors of sums in registers

// The sum of all lanes.
inline float across(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

#include "kernels/cpu/dense_body.inc"

}  // namespace

namespace sparseprune {
extern const DenseKernels dense_avx2;
const DenseKernels dense_avx2 = {dots, panels};
}  // namespace sparseprune
