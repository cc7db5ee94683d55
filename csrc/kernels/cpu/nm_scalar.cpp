// n:m kernels in portable C++: what every CPU runs, and what the others are compared with.
#include "kernels/cpu/nm.h"

namespace {

constexpr int kWidth = 4, kVectors = 4, kSums = 8;  // the vectors of the base instruction set

// sum[t] += the products of `units` times 32 columns of 2:4.
template <int kTokens>
inline void dot_2_of_4(const float* values, const uint8_t* places, int64_t units, const float* x,
                       int64_t x_stride, float* sum) {
  for (int64_t i = 0; i < units * 16; i += 4) {
    const unsigned bits = places[i / 4];
    for (int t = 0; t < kTokens; ++t) {
      const float* near = x + t * x_stride + 2 * i;
      sum[t] += values[i] * near[bits & 3] + values[i + 1] * near[bits >> 2 & 3] +
                values[i + 2] * near[4 + (bits >> 4 & 3)] + values[i + 3] * near[4 + (bits >> 6)];
    }
  }
}

#include "kernels/cpu/nm_body.inc"

}  // namespace

namespace sparseprune {
extern const NmKernels nm_scalar;
const NmKernels nm_scalar = {dots, panels};
}  // namespace sparseprune
