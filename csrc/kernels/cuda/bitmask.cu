#include <algorithm>

#include "kernels/cuda/bitmask.cuh"
#include "kernels/cuda/bitmask_forms.cuh"
#include "kernels/cuda/bitmask_kernel.cuh"
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

template <typename T>
int linear(const BitmaskOf<T>& w, const T* x, int64_t tokens, T* y, const cuda::Finish<T>& finish,
           void* stream) {
  Device device;
  if (const cudaError_t error = ask(device)) return error;
  return for_all_tokens<T>(tokens, [&](auto form, int64_t first, int64_t now) {
    const auto in = cuda::token_input(x + first * w.cols, now, w.cols);
    return launch<T, typename decltype(form)::type>(w, in, finish, y + first * w.rows, device,
                                                    stream);
  });
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
