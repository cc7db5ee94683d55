// What the launchers of every format share.
#pragma once
#include "kernels/cuda/element.h"
#include "kernels/cuda/io.cuh"

namespace sparseprune::cuda {

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kChunkBytes == 0; }

// Calls run(T{}) for the C++ type of the elements.
template <typename Run>
int with_type(Element element, const Run& run) {
  if (element == Element::float16) return run(__half{});
  if (element == Element::bfloat16) return run(__nv_bfloat16{});
  return run(float{});
}

// x [tokens, cols] and y [tokens, rows].
template <typename T>
TokenInput<T> token_input(const T* x, int64_t tokens, int64_t cols) {
  return {x, static_cast<int>(tokens), static_cast<int>(cols), aligned(x) && cols % kChunk<T> == 0};
}
template <typename T>
TokenOutput<T> token_output(T* y, int64_t tokens, int64_t rows) {
  return {y, static_cast<int>(tokens), static_cast<int>(rows)};
}

// Images whose columns are those of a W [rows, cols]; in one vector where the columns of every
// chunk are neighbours in x, aligned.
template <typename T>
ImageInput<T> image_input(const T* x, const ImageStrides& strides, const Conv2dShape& s,
                          int64_t cols, int64_t taps) {
  const auto whole = [](int64_t elements) { return elements % kChunk<T> == 0; };
  const bool vector = (taps > 1 || s.kernel_h * s.kernel_w == 1) && strides.channel == 1 &&
                      aligned(x) && whole(s.channels / s.groups) && whole(strides.image) &&
                      whole(strides.row) && whole(strides.column);
  const int out_h = static_cast<int>(s.out_height()), out_w = static_cast<int>(s.out_width());
  return {x,
          strides,
          s,
          out_h,
          out_w,
          static_cast<int>(s.batch) * out_h * out_w,
          static_cast<int>(cols),
          static_cast<int>(taps),
          static_cast<int>(s.channels / s.groups),
          vector};
}
template <typename T>
ImageOutput<T> image_output(T* y, const ImageStrides& strides, const Conv2dShape& s) {
  const int out_h = static_cast<int>(s.out_height()), out_w = static_cast<int>(s.out_width());
  return {y,
          strides,
          out_h,
          out_w,
          static_cast<int>(s.batch) * out_h * out_w,
          static_cast<int>(s.rows)};
}

// What a launcher asks the current device.
struct Device {
  int processors = 0, shared_bytes = 0;  // multiprocessors; shared memory of a thread block
};
inline cudaError_t ask(Device& of) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    if (!error) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  get(of.processors, cudaDevAttrMultiProcessorCount);
  get(of.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return error;
}

// Whether what runs here of a kernel was compiled for clusters (cluster.cuh): code for sm_80 that
// is compiled again for a later device was not.
template <typename Kernel>
bool has_clusters(Kernel kernel) {
  cudaFuncAttributes of{};
  return cudaFuncGetAttributes(&of, kernel) == cudaSuccess && of.ptxVersion >= 90;
}

// Starts kernel(args...) with that many threads and bytes of shared memory; in clusters of as many
// thread blocks (cluster.cuh).
template <typename... Parameters, typename... Args>
int start_clusters(void (*kernel)(Parameters...), int64_t thread_blocks, int cluster, int threads,
                   int shared, void* stream, const Args&... args) {
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  if (thread_blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(thread_blocks);
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}
template <typename Kernel, typename... Args>
int start(Kernel kernel, int64_t thread_blocks, int threads, int shared, void* stream,
          const Args&... args) {
  return start_clusters(kernel, thread_blocks, 1, threads, shared, stream, args...);
}

}  // namespace sparseprune::cuda
