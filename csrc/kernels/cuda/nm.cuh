// nm layers on CUDA, for 2:4: float16 and bfloat16 by sparse tensor cores (mma.sp, float sums),
// float32 by FMA, never TF32. No torch, no allocation: the caller owns the memory and brings the
// stream. Each returns a cudaError_t. Needs CUDA 12.5 or newer, for mma.sp::ordered_metadata. Not
// yet run on a GPU.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "formats/nm.h"
#include "kernels/cuda/element.h"

namespace sparseprune {

// Whether there is a kernel for this ratio.
constexpr bool nm_cuda_serves(int64_t n, int64_t m) { return n == 2 && m == 4; }

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], bias [rows]
// or null, on the device; values and places of W aligned to 16 bytes; tokens below 2^31 - 256.
int nm_linear_cuda(const Nm<void>& w, Element element, const void* x, int64_t tokens,
                   const void* bias, void* y, void* stream, Clamp clamp);

// y = clamp(conv(x, W) + bias), x and y in any memory format; output pixels of all images below
// 2^31 - 256. Fast where channels are innermost in x, their number per group divides by 8
// (float32: 4), and W has its taps first.
int nm_conv2d_cuda(const Nm<void>& w, Element element, const void* x, const ImageStrides& x_strides,
                   const Conv2dShape& shape, const void* bias, void* y,
                   const ImageStrides& y_strides, void* stream, Clamp clamp);

}  // namespace sparseprune
