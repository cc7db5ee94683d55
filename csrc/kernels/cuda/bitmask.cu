#include <algorithm>

#include "kernels/cuda/bitmask.cuh"
#include "kernels/cuda/bitmask_fma.cuh"
#include "kernels/cuda/bitmask_kernel.cuh"
#include "kernels/cuda/bitmask_mma.cuh"
#include "kernels/cuda/launch.cuh"

namespace sparseprune {
namespace bitmask {
namespace {

using cuda::Device;

// Many for few units, so that each multiprocessor has enough of them; no more than there are slabs.
template <typename Multiply>
int warps_for(const Device& device, int64_t blocks, int slabs) {
  constexpr int kMost = Multiply::kMostWarps;
  const int wanted = blocks > 2 * device.processors ? std::min(16, kMost) : kMost;
  const int fitting = device.shared_bytes / shared_bytes<Multiply>(1);
  return std::max(1, std::min({wanted, fitting, slabs}));
}

template <typename T, typename Multiply>
int launch(const BitmaskOf<T>& w, const cuda::TokenInput<T>& in, const cuda::Finish<T>& finish,
           T* y, const Device& device, void* stream) {
  const int slabs = slabs_of(w.cols);
  const auto kernel = bitmask_kernel<T, Multiply>;
  const int splits =
      cuda::has_clusters(kernel) ? splits_for(w.units(), device.processors, slabs) : 1;
  const int64_t blocks = w.units() * splits;
  const int warps = warps_for<Multiply>(device, blocks, slabs / splits);
  return cuda::start_clusters(kernel, blocks, splits, warps * kLanes, shared_bytes<Multiply>(warps),
                              stream, w, in, finish, y);
}

// How so many tokens are multiplied: by the smallest kernel that holds them, or the largest. Tensor
// cores take 16-bit types from two tokens on, where each more would be an FMA per position.
template <typename T>
struct Form {
  int tokens;
  int (*run)(const BitmaskOf<T>&, const cuda::TokenInput<T>&, const cuda::Finish<T>&, T*,
             const Device&, void*);
};
template <typename T>
Form<T> form_for(int64_t tokens) {
  if (tokens == 1) return {1, launch<T, Fma<T, 1>>};
  if constexpr (sizeof(T) == 2) {
    if (tokens <= kTile) return {kTile, launch<T, TensorCores<T, 1>>};
    if (tokens <= 2 * kTile) return {2 * kTile, launch<T, TensorCores<T, 2>>};
    if (tokens <= 4 * kTile) return {4 * kTile, launch<T, TensorCores<T, 4>>};
    return {8 * kTile, launch<T, TensorCores<T, 8>>};
  } else {
    if (tokens == 2) return {2, launch<T, Fma<T, 2>>};
    return tokens <= 4 ? Form<T>{4, launch<T, Fma<T, 4>>} : Form<T>{8, launch<T, Fma<T, 8>>};
  }
}

// As many tokens at a time as a form holds; the last ones by the smallest.
template <typename T>
int linear(const BitmaskOf<T>& w, const T* x, int64_t tokens, T* y, const cuda::Finish<T>& finish,
           void* stream) {
  Device device;
  if (const cudaError_t error = ask(device)) return error;
  for (int64_t done = 0, now = 0; done < tokens; done += now) {
    const Form<T> form = form_for<T>(tokens - done);
    now = std::min<int64_t>(tokens - done, form.tokens);
    const auto in = cuda::token_input(x + done * w.cols, now, w.cols);
    if (const int error = form.run(w, in, finish, y + done * w.rows, device, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace bitmask

int bitmask_linear_cuda(const BitmaskOf<void>& w, Element element, const void* x, int64_t tokens,
                        const void* bias, void* y, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) {
    using T = decltype(type);
    const BitmaskOf<T> typed{static_cast<const T*>(w.values), w.masks, w.starts, w.rows, w.cols};
    return bitmask::linear<T>(typed, static_cast<const T*>(x), tokens, static_cast<T*>(y),
                              {static_cast<const T*>(bias), clamp}, stream);
  });
}

}  // namespace sparseprune
