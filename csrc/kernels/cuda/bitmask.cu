#include <algorithm>

#include "kernels/cuda/bitmask.cuh"
#include "kernels/cuda/bitmask_kernel.cuh"
#include "kernels/cuda/launch.cuh"

namespace sparseprune {
namespace bitmask {
namespace {

struct Device {
  int processors = 0, shared_bytes = 0;  // multiprocessors; shared memory of a thread block
};

cudaError_t ask(Device& of) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&of.processors, cudaDevAttrMultiProcessorCount, device))
    return error;
  return cudaDeviceGetAttribute(&of.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Many for few units, so that each multiprocessor has enough of them; no more than there are slabs.
template <int kTokens>
int warps_for(const Device& device, int64_t units, int64_t cols) {
  constexpr int kMost = kMostWarps<kTokens>;
  const int wanted = units > 2 * device.processors ? 16 : kMost;
  const int fitting = device.shared_bytes / shared_bytes<kTokens>(1);
  return std::max(1, std::min({wanted, fitting, slabs_of(cols)}));
}

template <typename T, int kTokens>
int launch(const BitmaskOf<T>& w, const T* x, int tokens, const cuda::Finish<T>& finish, T* y,
           const Device& device, cudaStream_t stream) {
  const auto kernel = bitmask_kernel<T, kTokens>;
  const int warps = warps_for<kTokens>(device, w.units(), w.cols);
  const int bytes = shared_bytes<kTokens>(warps);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
    return error;
  kernel<<<static_cast<unsigned>(w.units()), warps * kLanes, bytes, stream>>>(w, x, tokens, finish,
                                                                              y);
  return cudaGetLastError();
}

// kMostTokens tokens at a time; the last ones by the smallest kernel that holds them.
template <typename T>
int linear(const BitmaskOf<T>& w, const T* x, int64_t tokens, T* y, const cuda::Finish<T>& finish,
           cudaStream_t stream) {
  Device device;
  if (const cudaError_t error = ask(device)) return error;
  for (int64_t first = 0; first < tokens; first += kMostTokens) {
    const int now = static_cast<int>(std::min<int64_t>(tokens - first, kMostTokens));
    const auto run = now == 1   ? launch<T, 1>
                     : now == 2 ? launch<T, 2>
                     : now <= 4 ? launch<T, 4>
                                : launch<T, kMostTokens>;
    if (const int error =
            run(w, x + first * w.cols, now, finish, y + first * w.rows, device, stream))
      return error;
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
                              {static_cast<const T*>(bias), clamp},
                              static_cast<cudaStream_t>(stream));
  });
}

}  // namespace sparseprune
