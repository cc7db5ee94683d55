// sell kernels in portable C++: what every CPU runs, and what the others are compared with.
#include "kernels/cpu/sell.h"

namespace {

using sparseprune::Clamp;
using sparseprune::Sell;
using W = Sell;
constexpr int kTogether = 4;  // tokens

template <int kTokens>
void multiply_unit(const Sell& w, int64_t unit, int live, const float* x, int64_t x_stride,
                   float (*sums)[Sell::kRows]) {
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < Sell::kRows; ++r) sums[t][r] = 0.f;
  for (int64_t i = w.starts[unit]; i < w.starts[unit + 1]; ++i) {
    const float* window = x + w.windows[i] * Sell::kBegin;
    for (int r = 0; r < live; ++r) {
      const uint8_t column = w.columns[i * Sell::kRows + r];
      if (!(column & Sell::kKept)) continue;
      for (int t = 0; t < kTokens; ++t)
        sums[t][r] +=
            w.values[i * Sell::kRows + r] * window[t * x_stride + (column & ~Sell::kKept)];
    }
  }
}

#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const SellKernels sell_scalar;
const SellKernels sell_scalar = {linear};
}  // namespace sparseprune
