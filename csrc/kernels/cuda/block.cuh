// block layers on CUDA, for square blocks of 16, 32 and 64: float16 and bfloat16 by tensor cores
// (mma.sync, float sums), float32 by FMA, never TF32. No torch, no allocation: the caller owns the
// memory and brings the stream. Each returns a cudaError_t. Not yet run on a GPU.
#pragma once
#include <cstdint>

#include "formats/block.h"
#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "kernels/cuda/element.h"

namespace sparseprune {

// Whether there is a kernel for blocks of this size.
constexpr bool block_cuda_serves(int64_t r, int64_t c) {
  return r == c && (r == 16 || r == 32 || r == 64);
}

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], bias [rows]
// or null, on the device; values of W aligned to 16 bytes; tokens below 2^31 - 256.
int block_linear_cuda(const Block<void>& w, Element element, const void* x, int64_t tokens,
                      const void* bias, void* y, void* stream, Clamp clamp);

// y = clamp(conv(x, W) + bias), x and y in any memory format; output pixels of all images below
// 2^31 - 256, rows per group divisible by the rows of a block. Fast where channels are innermost in
// x, their number per group divides by 8 (float32: 4), and W has its taps first.
int block_conv2d_cuda(const Block<void>& w, Element element, const void* x,
                      const ImageStrides& x_strides, const Conv2dShape& shape, const void* bias,
                      void* y, const ImageStrides& y_strides, void* stream, Clamp clamp);

}  // namespace sparseprune
