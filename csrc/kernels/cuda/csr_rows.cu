#include <algorithm>

#include "kernels/cuda/csr_few.cuh"
#include "kernels/cuda/csr_many.cuh"
#include "kernels/cuda/csr_rows.cuh"
#include "kernels/cuda/launch.cuh"

namespace sparseprune {
namespace csr {
namespace {

using cuda::Device;

template <typename T>
struct Call {
  const CsrRowsOf<T>& w;
  const T* x;
  int64_t tokens;
  cuda::Finish<T> finish;
  T* y;
  cudaStream_t stream;
};

template <typename T, int kTokens, bool kStaged>
cudaError_t few(const Call<T>& call, const Device& device) {
  const auto kernel = few_kernel<T, kTokens, kStaged>;
  const int bytes = kStaged ? static_cast<int>((call.w.cols + 1) * kTokens * sizeof(T)) : 0;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
    return error;
  const int64_t wanted = (call.w.rows + kFewWarps - 1) / kFewWarps;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(wanted, device.processors));
  kernel<<<blocks, kFewWarps * kLanes, bytes, call.stream>>>(
      call.w, call.x, static_cast<int>(call.tokens), call.finish, call.y);
  return cudaGetLastError();
}

// The largest group of tokens of which x fits into shared memory; else x stays where it lies.
template <typename T>
cudaError_t all_few(Call<T> call, const Device& device) {
  const auto fits = [&](int64_t tokens) {
    return (call.w.cols + 1) * tokens * static_cast<int64_t>(sizeof(T)) <= device.shared_bytes;
  };
  const int64_t end = call.tokens;
  for (int64_t done = 0, now = 0; done < end; done += now) {
    const int64_t left = end - done;
    now = left > 4 && fits(8)   ? std::min<int64_t>(left, 8)
          : left > 2 && fits(4) ? std::min<int64_t>(left, 4)
          : left > 1 && fits(2) ? 2
                                : 1;
    const auto run = now > 4   ? few<T, 8, true>
                     : now > 2 ? few<T, 4, true>
                     : now > 1 ? few<T, 2, true>
                     : fits(1) ? few<T, 1, true>
                               : few<T, 1, false>;
    Call<T> part = call;
    part.x += done * call.w.cols, part.y += done * call.w.rows, part.tokens = now;
    if (const cudaError_t error = run(part, device)) return error;
  }
  return cudaSuccess;
}

template <typename T, int kEach>
cudaError_t many(const Call<T>& call) {
  using Tile = csr::Tile<kEach>;
  const auto kernel = many_kernel<T, kEach>;
  constexpr int kBytes = Tile::kSlabFloats * sizeof(float);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes))
    return error;
  const int64_t tall = (call.w.rows + kTileRows - 1) / kTileRows;
  const int64_t blocks = tall * ((call.tokens + Tile::kTokens - 1) / Tile::kTokens);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const bool vector = call.w.cols % kPiece == 0 && cuda::aligned(call.x);
  kernel<<<static_cast<unsigned>(blocks), kManyThreads, kBytes, call.stream>>>(
      call.w, call.x, call.tokens, vector, call.finish, call.y);
  return cudaGetLastError();
}

template <typename T>
cudaError_t linear(const Call<T>& call) {
  Device device;
  if (const cudaError_t error = ask(device)) return error;
  if (call.tokens <= 2 * kMostFew) return all_few(call, device);
  if (call.tokens <= 32) return many<T, 1>(call);
  return call.tokens <= 64 ? many<T, 2>(call) : many<T, 4>(call);
}

}  // namespace
}  // namespace csr

int csr_rows_linear_cuda(const CsrRowsOf<void>& w, Element element, const void* x, int64_t tokens,
                         const void* bias, void* y, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) -> int {
    using T = decltype(type);
    const CsrRowsOf<T> typed{static_cast<const T*>(w.values), w.columns, w.row_start, w.rows,
                             w.cols};
    return csr::linear<T>({typed,
                           static_cast<const T*>(x),
                           tokens,
                           {static_cast<const T*>(bias), clamp},
                           static_cast<T*>(y),
                           static_cast<cudaStream_t>(stream)});
  });
}

}  // namespace sparseprune
