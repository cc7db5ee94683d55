// x into the tile of a stage, [kTokens, 128 bytes], by all threads of a thread block.
#pragma once
#include "kernels/cuda/io.cuh"

namespace sparseprune::cuda {

// Chunk by chunk, a thread always the same chunk of a row. Input is one of io.cuh.
template <typename T, int kTokens, int kThreads, typename Input>
struct CopyX {
  const Input& in;
  const void* table;
  int first_token;

  // Columns from `column` on for this thread's chunk; zeros where not `live`.
  __device__ void load(int column, bool live, char* tile) const {
    const int chunk = copy_chunk(threadIdx.x);
    if (!in.vector) return gather(chunk, column, live, tile);
    const auto read = in.column(column);
#pragma unroll
    for (int t = copy_row(threadIdx.x); t < kTokens; t += copy_rows(kThreads)) {
      const T* from = in.element(in.row(table, first_token, t), read);
      const bool inside = live && from;
      copy_async(shared_address(tile + chunk_byte(t, chunk)), inside ? from : in.x,
                 inside ? kChunkBytes : 0);
    }
  }

 private:
  // Where chunks are not aligned, or not neighbours: element by element, at once.
  __device__ void gather(int chunk, int column, bool live, char* tile) const {
#pragma unroll 1  // few instructions: others should stay in the cache
    for (int t = copy_row(threadIdx.x); t < kTokens; t += copy_rows(kThreads)) {
      const auto row = in.row(table, first_token, t);
      struct alignas(kChunkBytes) {
        T v[kChunk<T>];
      } values;
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) {
        const T* from = live ? in.element(row, in.column(column + i)) : nullptr;
        narrow(0.f, &values.v[i]);
        if (from) values.v[i] = *from;
      }
      *reinterpret_cast<decltype(values)*>(tile + chunk_byte(t, chunk)) = values;
    }
  }
};

}  // namespace sparseprune::cuda
