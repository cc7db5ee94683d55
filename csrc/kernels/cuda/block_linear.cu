#include "kernels/cuda/block_launch.cuh"

namespace sparseprune {
namespace block {
namespace {

template <typename T>
int linear(const Block<T>& w, const T* x, int tokens, T* y, const Finish<T>& finish, void* stream) {
  const TokenInput<T> in = token_input(x, tokens, w.cols);
  const TokenOutput<T> out = token_output(y, tokens, w.rows);
  return with_side(w.r, [&](auto tiles) {
    using Of = decltype(tiles);
    if (tokens <= kFewTokens)
      return launch<T, typename Of::Few>(w, in, out, finish, w.rows, stream);
    return launch<T, typename Of::Many>(w, in, out, finish, w.rows, stream);
  });
}

}  // namespace
}  // namespace block

int block_linear_cuda(const Block<void>& w, Element element, const void* x, int64_t tokens,
                      const void* bias, void* y, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) {
    using T = decltype(type);
    return block::linear<T>(block::typed<T>(w), static_cast<const T*>(x), static_cast<int>(tokens),
                            static_cast<T*>(y), {static_cast<const T*>(bias), clamp}, stream);
  });
}

}  // namespace sparseprune
