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

// A run of lanes that lie side by side in the source (stride apart) and in the output.
struct Run {
  int64_t lane, length;  // lanes [lane, lane + length)
  int64_t source;        // element of the source that lane reads for tap 0
  int64_t output;        // element of the output that lane writes for row 0
};

struct PanelKernels {
  int width;        // floats in a vector
  int max_vectors;  // vectors in a panel row that the kernels keep in registers

  // panel[c - begin, t] = x[t, c] for columns [begin, end); zeros in lanes [tokens, lanes).
  void (*pack_tokens)(const float* x, int64_t x_stride, int64_t tokens, int64_t begin, int64_t end,
                      float* panel, int64_t lanes);
  // y[t, r] = clamp(acc[r, t]) for rows [0, rows).
  void (*store_tokens)(const float* acc, int64_t lanes, int64_t rows, int64_t tokens, float* y,
                       int64_t y_stride, Clamp clamp);

  // panel[c, run.lane + i] = source[offsets[c] + run.source + i * stride] for `cols` columns.
  // Lanes that no run covers hold zeros.
  void (*pack_runs)(const float* source, const int32_t* offsets, int64_t cols, const Run* runs,
                    int64_t n_runs, int64_t stride, float* panel, int64_t lanes);
  // y[r * row_stride + run.output + i] = clamp(acc[r, run.lane + i]) for rows [0, rows).
  void (*store_runs)(const float* acc, int64_t lanes, int64_t rows, const Run* runs, int64_t n_runs,
                     float* y, int64_t row_stride, Clamp clamp);

  // acc[r, :] = bias[r] (or 0 where bias is null) for rows [0, rows).
  void (*fill)(const float* bias, int64_t rows, float* acc, int64_t lanes);
};

}  // namespace sparseprune
