// block ops of the backend "wgmma".
#include <torch/csrc/stable/library.h>

#include "kernels/cuda/block_wgmma.cuh"
#include "ops/block_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(sparseprune_wgmma, CUDA, library) {
  using namespace sparseprune;
  library.impl("block_linear", TORCH_BOX(&block_linear<block_linear_wgmma>));
  library.impl("block_conv2d", TORCH_BOX(&block_conv2d<block_conv2d_wgmma>));
}
