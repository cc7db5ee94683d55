// block layers of 64 x 64 blocks on devices of compute capability 9.0 (H100, H200), float16 and
// bfloat16, by its warpgroup products and its copy unit (wgmma, TMA). No torch, no allocation: the
// caller owns the memory and brings the stream. Not yet run on a GPU.
#pragma once
#include <cstdint>

#include "kernels/cuda/block.cuh"

namespace sparseprune {

// As block_linear_cuda and block_conv2d_cuda, `blocks` of W being all that are stored. What the
// copy unit does not take (few tokens, columns or channels that are no whole pieces, ...) is left
// to those.
int block_linear_wgmma(const Block<void>& w, int64_t blocks, Element element, const void* x,
                       int64_t tokens, const void* bias, void* y, void* stream, Clamp clamp);
int block_conv2d_wgmma(const Block<void>& w, int64_t blocks, Element element, const void* x,
                       const ImageStrides& x_strides, const Conv2dShape& shape, const void* bias,
                       void* y, const ImageStrides& y_strides, void* stream, Clamp clamp);

}  // namespace sparseprune
