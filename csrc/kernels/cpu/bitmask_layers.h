// A whole linear layer with a bitmask weight, over threads. No torch: the caller brings them.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/bitmask.h"
#include "formats/clamp.h"
#include "kernels/cpu/threads.h"

namespace sparseprune {

// Units cut into `parts` of about equal cost; parts + 1 bounds.
std::vector<int64_t> cut_evenly(const Bitmask& w, int64_t parts);

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], both dense.
// bias may be null.
void bitmask_linear(const Bitmask& w, const float* x, int64_t tokens, const float* bias, float* y,
                    const Threads& threads, Clamp clamp = {});

}  // namespace sparseprune
