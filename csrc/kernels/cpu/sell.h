// What every instruction set offers for sell weights. No threads, no allocation, no torch: the
// caller owns both. One table row (table.def) per SellKernels object.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/sell.h"

namespace sparseprune {

struct SellKernels {
  // y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), slices [begin, end), every token t. Up to
  // w.reach() floats of every token are read, those past its features without effect; bias may be
  // null. Up to eight tokens share a step's weights.
  void (*linear)(const Sell& w, const float* x, int64_t tokens, int64_t x_stride, const float* bias,
                 float* y, int64_t y_stride, int64_t begin, int64_t end, Clamp clamp);
};

}  // namespace sparseprune
