// Whole layers with an n:m weight, over threads. No torch: the caller brings the threads.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "formats/nm.h"
#include "kernels/cpu/threads.h"

namespace sparseprune {

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], both dense.
// bias may be null.
void nm_linear(const Nm<float>& w, const float* x, int64_t tokens, const float* bias, float* y,
               const Threads& threads, Clamp clamp = {});

// y = clamp(conv(x, W) + bias), each in the memory format that its strides say.
void nm_conv2d(const Nm<float>& w, const float* x, const ImageStrides& x_strides,
               const Conv2dShape& shape, const float* bias, float* y, const ImageStrides& y_strides,
               const Threads& threads, Clamp clamp = {});

}  // namespace sparseprune
