// block ops on CUDA.
#include "ops/block_cuda.h"

#include <torch/csrc/stable/library.h>

namespace sparseprune {
namespace {

constexpr auto kLinear = [](const Block<void>& w, int64_t, auto... rest) {
  return block_linear_cuda(w, rest...);
};
constexpr auto kConv2d = [](const Block<void>& w, int64_t, const auto&... rest) {
  return block_conv2d_cuda(w, rest...);
};

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, library) {
  library.impl("block_linear", TORCH_BOX(&sparseprune::block_linear<sparseprune::kLinear>));
  library.impl("block_conv2d", TORCH_BOX(&sparseprune::block_conv2d<sparseprune::kConv2d>));
}
