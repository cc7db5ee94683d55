// What the copy unit reads of a window, made by the driver.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/tensor_window.h"

namespace sparseprune::cuda {

// A function of the driver, which this library is not linked to; null without one.
template <typename Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  return error || result != cudaDriverEntryPointSuccess ? nullptr
                                                        : reinterpret_cast<Function*>(found);
}

constexpr CUtensorMapDataType data_type(__half) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }
constexpr CUtensorMapDataType data_type(__nv_bfloat16) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }

// Swizzled in rows of 128 bytes, zeros outside of the tensor.
template <typename T>
int make_map(CUtensorMap& map, const TensorWindow& w) {
  static auto* const rows =
      driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  static auto* const pixels =
      driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (!rows || !pixels) return cudaErrorNotSupported;
  cuuint64_t sizes[4], strides[3];
  for (int i = 0; i < w.rank; ++i) sizes[i] = static_cast<cuuint64_t>(w.sizes[i]);
  for (int i = 1; i < w.rank; ++i) strides[i - 1] = static_cast<cuuint64_t>(w.strides[i]) * 2;
  const auto unsign = [](int v) { return static_cast<cuuint32_t>(v); };
  const cuuint32_t box[2] = {unsign(w.box[0]), unsign(w.box[1])};
  const cuuint32_t steps[4] = {1, unsign(w.steps[0]), unsign(w.steps[1]), 1};
  void* base = const_cast<void*>(w.base);
  const auto rank = unsign(w.rank);
  constexpr auto kPlain = CU_TENSOR_MAP_INTERLEAVE_NONE;
  constexpr auto kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  constexpr auto kAhead = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  constexpr auto kZeros = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  const CUresult result =
      w.rank == 2 ? rows(&map, data_type(T{}), rank, base, sizes, strides, box, steps, kPlain,
                         kSwizzle, kAhead, kZeros)
                  : pixels(&map, data_type(T{}), rank, base, sizes, strides, w.lower, w.upper,
                           box[0], box[1], steps, kPlain, kSwizzle, kAhead, kZeros);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace sparseprune::cuda
