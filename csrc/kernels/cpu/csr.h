// What every instruction set offers for csr weights. No threads, no allocation, no torch: the
// caller owns both. One table row (table.def) per CsrKernels object.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/csr.h"

namespace sparseprune {

// How the sums of the rows of a call begin and end; the pointers are to the first of these rows.
struct CsrEnds {
  bool first = false;           // they begin as bias (null: 0), else as acc holds them
  const float* bias = nullptr;  // [rows]
  int64_t rows = 0;             // of the weight; the last group of four may have fewer
  // Null: they end in acc. Else y[r * stride + i] = clamp(sum[r, i] + residual[r * stride + i]) &
  // live[i]; residual and live may be null, y and residual are aligned.
  float* y = nullptr;
  int64_t stride = 0;
  const float* residual = nullptr;
  const int32_t* live = nullptr;
  Clamp clamp;
};

// Activations of a block of columns, those of column c behind data + c * pitch, all aligned to 64
// bytes.
struct CsrPanel {
  const float* data;
  int64_t pitch;  // floats
};

struct CsrKernels {
  int max_vectors;  // of lanes that the kernels below take at once

  // y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), rows [begin, end), every token t. bias may be
  // null. Reads x [tokens, cols] where it lies, so it suits the few tokens that no panel would
  // repay.
  using Gather = void (*)(const CsrRows& w, const float* x, int64_t tokens, int64_t x_stride,
                          const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end,
                          Clamp clamp);
  Gather gather;
  // The same without instructions that gather.
  Gather gather_by_inserts;

  // acc[r, :] += sum_c W[r, c] panel[c, :], rows [begin, end), but for what `ends` says; acc starts
  // at row `begin`. panel [cols, vectors * width] and acc [rows, vectors * width] are 64-byte
  // aligned.
  void (*rows)(const CsrRows& w, const float* panel, int vectors, float* acc, int64_t begin,
               int64_t end, const CsrEnds& ends);

  // The same for one block of columns, groups [begin, end): panel holds that block's columns only
  // and acc starts at row 4 * begin. Where groups are numbered, these are whole segments.
  void (*groups)(const CsrGroups& w, int64_t block, const float* panel, int vectors, float* acc,
                 int64_t begin, int64_t end, const CsrEnds& ends);

  // The same for segments [begin, end); acc starts at row 128 * begin, and the columns of the panel
  // may lie apart.
  void (*sorted)(const CsrSorted& w, int64_t block, CsrPanel panel, int vectors, float* acc,
                 int64_t begin, int64_t end, const CsrEnds& ends);
};

}  // namespace sparseprune
