// Panel kernels for AVX-512: 16 x 16 transposition, masked copies.
#include <immintrin.h>

#include "kernels/cpu/panel.h"

namespace {

using sparseprune::Clamp;
constexpr int kWidth = 16, kVectors = 4;
using Vec = __m512;

// The second operand comes back where one is NaN.
inline Vec limit(Vec v, Clamp clamp) {
  return _mm512_min_ps(_mm512_set1_ps(clamp.high), _mm512_max_ps(_mm512_set1_ps(clamp.low), v));
}

// Quarter q of the result holds four floats of row i + 4 q: two of the four stages of a transpose
// are done by the load ports.
inline __m512 load_quarters(const float* src, int64_t stride) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(src));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(src + 4 * stride), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(src + 8 * stride), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(src + 12 * stride), 3);
}

// dst[c, r] = op(src[r, c]) for 16 x 16
template <typename Op>
inline void transpose_tile(const float* src, int64_t src_stride, float* dst, int64_t dst_stride,
                           Op op) {
  for (int c = 0; c < 16; c += 4) {
    const __m512 r0 = load_quarters(src + c, src_stride);
    const __m512 r1 = load_quarters(src + c + src_stride, src_stride);
    const __m512 r2 = load_quarters(src + c + 2 * src_stride, src_stride);
    const __m512 r3 = load_quarters(src + c + 3 * src_stride, src_stride);
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    float* to = dst + c * dst_stride;
    _mm512_storeu_ps(to, op(_mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23))));
    _mm512_storeu_ps(to + dst_stride, op(_mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23))));
    _mm512_storeu_ps(to + 2 * dst_stride, op(_mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23))));
    _mm512_storeu_ps(to + 3 * dst_stride, op(_mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23))));
  }
}

// dst[0..count) = op(src[0..count)), touching nothing else.
template <typename Op>
inline void copy(float* dst, const float* src, int64_t count, Op op) {
  for (; count >= 16; count -= 16, dst += 16, src += 16)
    _mm512_storeu_ps(dst, op(_mm512_loadu_ps(src)));
  if (count == 0) return;
  const __mmask16 live = (1u << count) - 1;
  _mm512_mask_storeu_ps(dst, live, op(_mm512_maskz_loadu_ps(live, src)));
}

#include "kernels/cpu/panel_body.inc"

}  // namespace

namespace sparseprune {
extern const PanelKernels panel_avx512;
const PanelKernels panel_avx512 = {kWidth, kVectors, pack_tokens, store_tokens};
}  // namespace sparseprune
