// csr layers on CUDA: simple kernels, correct for every shape; not tuned. No torch, no
// allocation: the caller owns the memory and brings the stream. Each returns a cudaError_t.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "formats/csr.h"

namespace sparseprune {

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], on the
// device. For the three layouts, here and below.
template <typename W>
int csr_linear_cuda(const W& w, const float* x, int64_t tokens, const float* bias, float* y,
                    void* stream, Clamp clamp);

// As csr_conv2d of the CPU: columns of W are (input channel of the group, ky, kx).
template <typename W>
int csr_conv2d_cuda(const W& w, const float* x, const Conv2dShape& shape, const float* bias,
                    float* y, void* stream, Clamp clamp);

const char* cuda_error_text(int error);

}  // namespace sparseprune
