// One convolution with a csr weight, as a program of its own.
#pragma once
#include "formats/conv2d.h"
#include "formats/csr.h"
#include "kernels/cpu/csr_layers.h"

namespace sparseprune {

// y = clamp(conv(x, W) + bias). Columns of W are (input channel of the group, ky, kx), as in
// weight.reshape(rows, -1). Rows per convolution group must divide by the rows that the layout
// binds together (kRows). For the three layouts.
template <typename W>
void csr_conv2d(const W& w, const float* x, const Conv2dShape& shape, const float* bias, float* y,
                const Threads& threads, Clamp clamp = {});

}  // namespace sparseprune
