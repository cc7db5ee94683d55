// One kernel for every layer of 2:4: pipeline.cuh over stages of x and W. `Multiply` says how they
// are multiplied: sparse tensor cores or FMA.
#pragma once
#include "formats/nm.h"
#include "kernels/cuda/copy_x.cuh"
#include "kernels/cuda/nm_index.h"
#include "kernels/cuda/pipeline.cuh"

namespace sparseprune::nm {

// Copies of one thread. Rows past the strip's last are that row again, for places must be valid.
template <typename T, typename Tile, typename Input>
struct Loader {
  const Nm<T>& w;
  CopyX<T, Tile::kTokens, Tile::kThreads, Input> x;
  Strip strip;
  int slabs;  // of a row

  struct Nothing {};
  __device__ Nothing ahead(int) const { return {}; }

  __device__ void load(int stage, Nothing, char* to) const {
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s)
      slab(stage * Tile::kSlabs + s, to + s * Tile::kSlabBytes);
  }

 private:
  __device__ int64_t row(int r) const { return min(strip.row + r, strip.end - 1); }

  __device__ void slab(int slab, char* to) const {
    const bool live = slab < slabs;
    x.load(slab * kStage<T> + copy_chunk(threadIdx.x) * kChunk<T>, live, to);
    const int chunk = threadIdx.x % kValueChunks;
    const int value = slab * kValues<T> + chunk * kChunk<T>;
#pragma unroll
    for (int r = threadIdx.x / kValueChunks; r < Tile::kRows; r += Tile::kValueRows)
      copy_async(shared_address(to + Tile::kXBytes + value_byte(r, chunk)),
                 live ? w.values + row(r) * w.row_values() + value : w.values,
                 live ? kChunkBytes : 0);
    if (threadIdx.x >= Tile::kRows) return;
    const int byte = min(slab, slabs - 1) * kSlabPlaces<T>;
    copy_async_few<kSlabPlaces<T>>(shared_address(to + Tile::kPlacesAt + threadIdx.x * kPlaceBytes),
                                   w.places + row(threadIdx.x) * w.place_bytes() + byte);
  }
};

// y = clamp(W x + bias) for one strip and one tile of tokens.
template <typename T, typename Tile, typename Multiply, typename Input, typename Output>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    nm_kernel(Nm<T> w, Input in, Output out, Finish<T> finish, int groups) {
  extern __shared__ __align__(128) char shared[];
  char* table = shared + Tile::kStages * Tile::kStageBytes;
  const Strip strip = strip_of<Tile>(blockIdx.x, static_cast<int>(w.rows), groups);
  const int slabs = static_cast<int>(w.row_values()) / kValues<T>;
  if (threadIdx.x < Tile::kTokens) in.fill(table, strip.token, threadIdx.x, strip.group);
  __syncthreads();

  const Loader<T, Tile, Input> loader{w, {in, table, strip.token}, strip, slabs};
  Multiply sums;
  pipeline<Tile::kStages, Tile::kStageBytes>(loader, (slabs + Tile::kSlabs - 1) / Tile::kSlabs,
                                             shared, sums);
  sums.finish(shared, Store<T, Output>(out, finish, strip.token, strip.row, strip.end));
}

}  // namespace sparseprune::nm
