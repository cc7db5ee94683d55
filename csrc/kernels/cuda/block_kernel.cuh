// One kernel for every block layer: stages of x and W go through shared memory, kStages - 1 of them
// under way while one is multiplied. `Multiply` says how: tensor cores or FMA.
#pragma once
#include "kernels/cuda/block_io.cuh"

namespace sparseprune::block {

// Copies of one thread: chunk by chunk, always the same chunk of a row.
template <typename T, typename Tile, typename Input>
struct Loader {
  const Block<T>& w;
  const Input& in;
  const void* table;
  int first_block, depth;  // the strip's first block, and columns of all its blocks
  Strip strip;

  // The column of W that this thread copies in a stage; -1 past the last block. Asked for a stage
  // ahead, so that no copy waits for it.
  __device__ int column(int stage) const {
    const int k = place(stage);
    const BlockColumn at = block_column(k, Tile::kSide);
    return k < depth ? w.columns[first_block + at.block] * Tile::kSide + at.col : -1;
  }

  __device__ void load(int stage, int column, char* tiles) const {
    const int chunk = copy_chunk(threadIdx.x);
    const bool live = column >= 0;
    const BlockColumn at = block_column(place(stage), Tile::kSide);
    const int64_t block = first_block + at.block;
    load_x(chunk, max(column, 0), live, tiles);
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

  __device__ void load_x(int chunk, int column, bool live, char* tile) const {
    if (!in.vector) return gather_x(chunk, column, live, tile);
    const auto read = in.column(column);
#pragma unroll
    for (int t = copy_row(threadIdx.x); t < Tile::kTokens; t += kCopyRows) {
      const T* from = in.element(in.row(table, strip.token, t), read);
      const bool inside = live && from;
      copy_async(shared_address(tile + chunk_byte(t, chunk)), inside ? from : in.x,
                 inside ? kChunkBytes : 0);
    }
  }

  // Where chunks are not aligned, or not neighbours: element by element, at once.
  __device__ void gather_x(int chunk, int column, bool live, char* tile) const {
    for (int t = copy_row(threadIdx.x); t < Tile::kTokens; t += kCopyRows) {
      const auto row = in.row(table, strip.token, t);
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

// y = clamp(W x + bias) for one strip and one tile of tokens.
template <typename T, typename Tile, typename Multiply, typename Input, typename Output>
__global__ void __launch_bounds__(kThreads, kResident)
    block_kernel(Block<T> w, Input in, Output out, Finish<T> finish, int rows_per_group) {
  extern __shared__ __align__(128) char shared[];
  char* table = shared + Tile::kStages * Tile::kStageBytes;
  const Strip strip = strip_of<Tile>(blockIdx.x, static_cast<int>(w.rows));
  const int begin = w.starts[strip.block_row];
  const int depth = (w.starts[strip.block_row + 1] - begin) * Tile::kSide;
  const int stages = (depth + kStage<T> - 1) / kStage<T>;
  if (threadIdx.x < Tile::kTokens)
    in.fill(table, strip.token, threadIdx.x, strip.block_row * Tile::kSide / rows_per_group);
  __syncthreads();

  const Loader<T, Tile, Input> loader{w, in, table, begin, depth, strip};
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (s < stages) loader.load(s, loader.column(s), shared + s * Tile::kStageBytes);
    commit_copies();
  }
  Multiply sums;
  int column = loader.column(Tile::kStages - 1);
  for (int s = 0; s < stages; ++s) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();  // stage s has arrived, and all are done with the one before it
    const int next = s + Tile::kStages - 1;
    if (next < stages) loader.load(next, column, shared + next % Tile::kStages * Tile::kStageBytes);
    commit_copies();
    column = loader.column(next + 1);
    sums.step(shared + s % Tile::kStages * Tile::kStageBytes);
  }
  wait_copies<0>();
  __syncthreads();
  sums.finish(shared, Store<T, Output>{out, finish, strip.token,
                                       strip.block_row * Tile::kSide + strip.row});
}

}  // namespace sparseprune::block
