// Panel kernels in portable C++.
#include "kernels/cpu/panel.h"

namespace {

using sparseprune::Run;
constexpr int kWidth = 4, kVectors = 2;

// dst[c, r] = src[r, c] for 4 x 4
inline void transpose_tile(const float* src, int64_t src_stride, float* dst, int64_t dst_stride) {
  for (int r = 0; r < kWidth; ++r)
    for (int c = 0; c < kWidth; ++c) dst[c * dst_stride + r] = src[r * src_stride + c];
}

// dst[0..count) = src[0..count), touching nothing else.
inline void copy(float* dst, const float* src, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dst[i] = src[i];
}

#include "kernels/cpu/panel_body.inc"

}  // namespace

namespace sparseprune {
extern const PanelKernels panel_scalar;
const PanelKernels panel_scalar = {kWidth,    kVectors,   pack_tokens, store_tokens,
                                   pack_runs, store_runs, fill};
}  // namespace sparseprune
