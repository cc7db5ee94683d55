// A whole linear layer with a sell weight, over threads. No torch: the caller brings them.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/clamp.h"
#include "formats/sell.h"
#include "kernels/cpu/threads.h"

namespace sparseprune {

// Slices cut into `parts` of about equal steps; parts + 1 bounds.
std::vector<int64_t> cut_evenly(const Sell& w, int64_t parts);

// Slices [begin, end) of y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]), from one thread. No more
// of x is read than its features; bias may be null.
void sell_slices(const Sell& w, const float* x, int64_t tokens, int64_t x_stride, const float* bias,
                 float* y, int64_t y_stride, int64_t begin, int64_t end, Clamp clamp);

// All of them; x [tokens, cols], y [tokens, rows], both dense.
void sell_linear(const Sell& w, const float* x, int64_t tokens, const float* bias, float* y,
                 const Threads& threads, Clamp clamp = {});

}  // namespace sparseprune
