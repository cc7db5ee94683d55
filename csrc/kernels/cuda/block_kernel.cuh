// One kernel for every block layer: pipeline.cuh over stages of x and W. `Multiply` says how they
// are multiplied: tensor cores or FMA.
#pragma once
#include "formats/block.h"
#include "kernels/cuda/block_index.h"
#include "kernels/cuda/copy_x.cuh"
#include "kernels/cuda/pipeline.cuh"

namespace sparseprune::block {

// Copies of one thread: chunk by chunk, always the same chunk of a row.
template <typename T, typename Tile, typename Input>
struct Loader {
  const Block<T>& w;
  CopyX<T, Tile::kTokens, kThreads, Input> x;
  int first_block, depth;  // the strip's first block, and columns of all its blocks
  Strip strip;

  // The column of W that this thread copies in a stage; -1 past the last block.
  __device__ int ahead(int stage) const {
    const int k = place(stage);
    const BlockColumn at = block_column(k, Tile::kSide);
    return k < depth ? w.columns[first_block + at.block] * Tile::kSide + at.col : -1;
  }

  __device__ void load(int stage, int column, char* tiles) const {
    const int chunk = copy_chunk(threadIdx.x);
    const bool live = column >= 0;
    const BlockColumn at = block_column(place(stage), Tile::kSide);
    const int64_t block = first_block + at.block;
    x.load(max(column, 0), live, tiles);
    const T* from = w.values + (block * Tile::kSide + strip.row) * Tile::kSide + at.col;
    char* w_tile = tiles + Tile::kTokens * kRowBytes;
#pragma unroll
    for (int row = copy_row(threadIdx.x); row < Tile::kRows; row += kCopyRows)
      copy_async(shared_address(w_tile + chunk_byte(row, chunk)),
                 live ? from + row * Tile::kSide : w.values, live ? kChunkBytes : 0);
  }

 private:
  __device__ static int place(int stage) {
    return stage * kStage<T> + copy_chunk(threadIdx.x) * kChunk<T>;
  }
};

// y = clamp(W x + bias) for one strip and one tile of tokens.
template <typename T, typename Tile, typename Multiply, typename Input, typename Output>
__global__ void __launch_bounds__(kThreads, kResident)
    block_kernel(Block<T> w, Input in, Output out, Finish<T> finish, int rows_per_group) {
  extern __shared__ __align__(128) char shared[];
  char* table = shared + Tile::kStages * Tile::kStageBytes;
  const Strip strip = strip_of<Tile>(blockIdx.x, static_cast<int>(w.rows));
  const int begin = w.starts[strip.block_row];
  const int depth = (w.starts[strip.block_row + 1] - begin) * Tile::kSide;
  if (threadIdx.x < Tile::kTokens)
    in.fill(table, strip.token, threadIdx.x, strip.block_row * Tile::kSide / rows_per_group);
  __syncthreads();

  const Loader<T, Tile, Input> loader{w, {in, table, strip.token}, begin, depth, strip};
  Multiply sums;
  pipeline<Tile::kStages, Tile::kStageBytes>(loader, (depth + kStage<T> - 1) / kStage<T>, shared,
                                             sums);
  const int first_row = strip.block_row * Tile::kSide + strip.row;
  sums.finish(shared, Store<T, Output>(out, finish, strip.token, first_row, out.rows));
}

}  // namespace sparseprune::block
