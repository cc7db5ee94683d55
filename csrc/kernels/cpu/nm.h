// What every instruction set offers for n:m weights. No threads, no allocation, no torch: the
// caller owns both. One table row (table.def) per NmKernels object.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/nm.h"

namespace sparseprune {

struct NmKernels {
  // y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), rows [begin, end), every token t. bias may be
  // null. Reads x [tokens, cols] where it lies: for the few tokens that no panel would repay.
  void (*dots)(const Nm<float>& w, const float* x, int64_t tokens, int64_t x_stride,
               const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end,
               Clamp clamp);

  // acc[r, :] += sum_c W[r, c] panel[c, :], rows [begin, end), the columns of groups [first, last),
  // which are even. panel [cols, vectors * width] (panel.h), acc [rows, vectors * width] at row
  // `begin`; both are 64-byte aligned.
  void (*panels)(const Nm<float>& w, int64_t first, int64_t last, const float* panel, int vectors,
                 float* acc, int64_t begin, int64_t end);
};

}  // namespace sparseprune
