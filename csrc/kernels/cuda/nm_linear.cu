#include "kernels/cuda/nm_launch.cuh"

namespace sparseprune {
namespace nm {
namespace {

template <typename T>
int linear(const Nm<T>& w, const T* x, int64_t tokens, T* y, const Finish<T>& finish,
           void* stream) {
  const TokenInput<T> in = token_input(x, tokens, w.cols);
  const TokenOutput<T> out = token_output(y, tokens, w.rows);
  if (tokens <= Narrow::kTokens) return launch<Narrow>(w, in, out, finish, 1, stream);
  if (tokens <= Small::kTokens) return launch<Small>(w, in, out, finish, 1, stream);
  if constexpr (sizeof(T) == 2)  // float is bound by FMA, not by what L2 delivers
    if (tokens * w.rows >= kLargeOutputs && large_fits<TokenInput<T>>())
      return launch<Large>(w, in, out, finish, 1, stream);
  return launch<Medium>(w, in, out, finish, 1, stream);
}

}  // namespace
}  // namespace nm

int nm_linear_cuda(const Nm<void>& w, Element element, const void* x, int64_t tokens,
                   const void* bias, void* y, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) {
    using T = decltype(type);
    return nm::linear<T>(nm::typed<T>(w), static_cast<const T*>(x), tokens, static_cast<T*>(y),
                         {static_cast<const T*>(bias), clamp}, stream);
  });
}

}  // namespace sparseprune
