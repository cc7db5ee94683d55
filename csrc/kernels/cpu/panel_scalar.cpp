// Panel kernels in portable C++.
#include "kernels/cpu/panel.h"

namespace {

using sparseprune::Clamp;
constexpr int kWidth = 4, kVectors = 4;
struct Vec {};  // no vectors here: everything goes one float at a time

inline Vec limit(Vec v, Clamp) { return v; }

// dst[c, r] = op(src[r, c]) for 4 x 4
template <typename Op>
inline void transpose_tile(const float* src, int64_t src_stride, float* dst, int64_t dst_stride,
                           Op op) {
  for (int r = 0; r < kWidth; ++r)
    for (int c = 0; c < kWidth; ++c) dst[c * dst_stride + r] = op(src[r * src_stride + c]);
}

// dst[0..count) = op(src[0..count)), touching nothing else.
template <typename Op>
inline void copy(float* dst, const float* src, int64_t count, Op op) {
  for (int64_t i = 0; i < count; ++i) dst[i] = op(src[i]);
}

#include "kernels/cpu/panel_body.inc"

}  // namespace

namespace sparseprune {
extern const PanelKernels panel_scalar;
const PanelKernels panel_scalar = {kWidth, kVectors, pack_tokens, store_tokens};
}  // namespace sparseprune
