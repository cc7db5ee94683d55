// Panel kernels for AVX2: 8 x 8 transposition, masked copies.
#include <immintrin.h>

#include "kernels/cpu/panel.h"

namespace {

using sparseprune::Clamp;
constexpr int kWidth = 8, kVectors = 2;
using Vec = __m256;

// The second operand comes back where one is NaN.
inline Vec limit(Vec v, Clamp clamp) {
  return _mm256_min_ps(_mm256_set1_ps(clamp.high), _mm256_max_ps(_mm256_set1_ps(clamp.low), v));
}

// Half h of the result holds four floats of row i + 4 h.
inline __m256 load_halves(const float* src, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(src)),
                              _mm_loadu_ps(src + 4 * stride), 1);
}

// dst[c, r] = op(src[r, c]) for 8 x 8
template <typename Op>
inline void transpose_tile(const float* src, int64_t src_stride, float* dst, int64_t dst_stride,
                           Op op) {
  for (int c = 0; c < 8; c += 4) {
    const __m256 r0 = load_halves(src + c, src_stride);
    const __m256 r1 = load_halves(src + c + src_stride, src_stride);
    const __m256 r2 = load_halves(src + c + 2 * src_stride, src_stride);
    const __m256 r3 = load_halves(src + c + 3 * src_stride, src_stride);
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
    float* to = dst + c * dst_stride;
    _mm256_storeu_ps(to, op(_mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23))));
    _mm256_storeu_ps(to + dst_stride, op(_mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23))));
    _mm256_storeu_ps(to + 2 * dst_stride, op(_mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23))));
    _mm256_storeu_ps(to + 3 * dst_stride, op(_mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23))));
  }
}

// dst[0..count) = op(src[0..count)), touching nothing else.
template <typename Op>
inline void copy(float* dst, const float* src, int64_t count, Op op) {
  for (; count > 8; count -= 8, dst += 8, src += 8) _mm256_storeu_ps(dst, op(_mm256_loadu_ps(src)));
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i live = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  _mm256_maskstore_ps(dst, live, op(_mm256_maskload_ps(src, live)));
}

#include "kernels/cpu/panel_body.inc"

}  // namespace

namespace sparseprune {
extern const PanelKernels panel_avx2;
const PanelKernels panel_avx2 = {kWidth, kVectors, pack_tokens, store_tokens};
}  // namespace sparseprune
