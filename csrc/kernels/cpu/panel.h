// Panels: the activations of up to `vectors * width` tokens (or output pixels), one row per
// column of the weight, so that a weight times a panel row is a broadcast and a few vector FMAs.
//
//   x [tokens, cols]          panel [cols, lanes]
//     t0: a b c                  a d 0 0
//     t1: d e f        ->        b e 0 0        lanes past the last token hold zeros
//                                c f 0 0
#pragma once
#include <cstdint>

#include "formats/clamp.h"

namespace sparseprune {

struct PanelKernels {
  int width;        // floats in a vector
  int max_vectors;  // vectors in a panel row that the kernels keep in registers

  // panel[c - begin, t] = x[t, c] for columns [begin, end); zeros in lanes [tokens, lanes).
  void (*pack_tokens)(const float* x, int64_t x_stride, int64_t tokens, int64_t begin, int64_t end,
                      float* panel, int64_t lanes);
  // y[t, r] = clamp(acc[r, t]) for rows [0, rows).
  void (*store_tokens)(const float* acc, int64_t lanes, int64_t rows, int64_t tokens, float* y,
                       int64_t y_stride, Clamp clamp);
};

}  // namespace sparseprune
