// What every instruction set offers for weights that stay dense. No threads, no allocation, no
// torch: the caller owns both. One table row (table.def) per DenseKernels object.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/dense.h"

namespace sparseprune {

struct DenseKernels {
  // y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), rows [begin, end), every token t. bias may be
  // null. Up to four tokens share the weights that are loaded: for few tokens, bound by memory.
  void (*dots)(const DenseMatrix& w, const float* x, int64_t tokens, int64_t x_stride,
               const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end,
               Clamp clamp);

  // acc[r, :] += sum_c W[r, c] panel[c, :], rows [begin, end), columns [column, column + cols).
  // panel [cols, vectors * width] (panel.h) begins at `column`, acc [rows, vectors * width] at row
  // `begin`; both are 64-byte aligned.
  void (*panels)(const DenseMatrix& w, int64_t column, int64_t cols, const float* panel,
                 int vectors, float* acc, int64_t begin, int64_t end);
};

}  // namespace sparseprune
