// bitmask layers on CUDA, for few tokens: float32 by FMA, float16 and bfloat16 by tensor cores from
// two tokens on, sums in float. No torch, no allocation: the caller owns the memory and brings the
// stream. Returns a cudaError_t. Not yet run on a GPU.
#pragma once
#include <cstdint>

#include "formats/bitmask.h"
#include "formats/clamp.h"
#include "kernels/cuda/element.h"

namespace sparseprune {

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], bias [rows]
// or null, on the device; values of W aligned to 16 bytes, masks to 8. Weights are read once for
// every 8 tokens, by tensor cores for every 64. What W lacks adds nothing, whatever x is there.
int bitmask_linear_cuda(const BitmaskOf<void>& w, Element element, const void* x, int64_t tokens,
                        const void* bias, void* y, void* stream, Clamp clamp);

}  // namespace sparseprune
