// Linear layers in the csr layout "rows" on CUDA: float32, float16, bfloat16, sums in float. No
// torch, no allocation. Returns a cudaError_t. Not yet run on a GPU.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/csr.h"
#include "kernels/cuda/element.h"

namespace sparseprune {

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], bias [rows]
// or null, on the device; values and columns of W aligned to 16 bytes.
int csr_rows_linear_cuda(const CsrRowsOf<void>& w, Element element, const void* x, int64_t tokens,
                         const void* bias, void* y, void* stream, Clamp clamp);

}  // namespace sparseprune
