// bitmask kernels in portable C++: what every CPU runs, and what the others are compared with.
#include "kernels/cpu/bitmask.h"

namespace {

using sparseprune::Bitmask;
using sparseprune::Clamp;
using W = Bitmask;
constexpr int kTogether = 4;  // tokens

// sums[t, r] of the rows of a unit: byte by byte of every mask, from its lowest set bit up.
template <int kTokens>
void multiply_unit(const Bitmask& w, int64_t unit, int live, const float* x, int64_t x_stride,
                   float (*sums)[Bitmask::kRows]) {
  const uint8_t* masks = w.masks + unit * w.cols * Bitmask::kMaskBytes;
  const float* values = w.values + w.starts[unit];
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < Bitmask::kRows; ++r) sums[t][r] = 0.f;
  for (int64_t c = 0; c < w.cols; ++c, masks += Bitmask::kMaskBytes)
    for (int first = 0; first < live; first += 8)
      for (unsigned bits = masks[first / 8]; bits; bits &= bits - 1) {
        const int r = first + __builtin_ctz(bits);
        const float value = *values++;
        for (int t = 0; t < kTokens; ++t) sums[t][r] += value * x[t * x_stride + c];
      }
}

#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const BitmaskKernels bitmask_scalar;
const BitmaskKernels bitmask_scalar = {linear, nullptr};
}  // namespace sparseprune
