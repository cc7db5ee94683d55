// What every instruction set offers for bitmask weights. No threads, no allocation, no torch: the
// caller owns both. One table row (table.def) per BitmaskKernels object.
#pragma once
#include <cstdint>

#include "formats/bitmask.h"
#include "formats/clamp.h"

namespace sparseprune {

struct BitmaskKernels {
  // y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), units [begin, end) of 64 rows, every token t.
  // bias may be null. Up to four tokens share the weights that are expanded.
  using Linear = void (*)(const Bitmask& w, const float* x, int64_t tokens, int64_t x_stride,
                          const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end,
                          Clamp clamp);
  Linear linear;
  // The same for CPUs that expand slowly (isa.h); null where an instruction set has no such form.
  Linear linear_by_counts;
};

}  // namespace sparseprune
