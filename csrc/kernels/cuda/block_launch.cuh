// From sizes to a kernel: the side of the blocks and the number of tokens choose the tile.
#pragma once
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/block_kernel.cuh"
#include "kernels/cuda/block_multiply.cuh"
#include "kernels/cuda/launch.cuh"

namespace sparseprune::block {

template <typename T, typename Tile, typename Input, typename Output>
int launch(const Block<T>& w, const Input& in, const Output& out, const Finish<T>& finish,
           int64_t rows_per_group, void* stream) {
  using Multiply = typename MultiplyOf<T, Tile>::Type;
  const auto kernel = block_kernel<T, Tile, Multiply, Input, Output>;
  constexpr int kShared = Tile::kStages * Tile::kStageBytes + Tile::kTokens * Input::kTableBytes;
  const int64_t token_tiles = (int64_t{out.tokens} + Tile::kTokens - 1) / Tile::kTokens;
  return start(kernel, w.block_rows() * Tile::kStrips * token_tiles, kThreads, kShared, stream, w,
               in, out, finish, static_cast<int>(rows_per_group));
}

template <typename T>
Block<T> typed(const Block<void>& w) {
  return {static_cast<const T*>(w.values), w.columns, w.starts, w.rows, w.cols, w.r, w.c, w.taps};
}

// Calls run(Tiles<side>{}) for the side of the blocks.
template <typename Run>
int with_side(int64_t side, const Run& run) {
  if (side == 16) return run(Tiles<16>{});
  if (side == 32) return run(Tiles<32>{});
  if (side == 64) return run(Tiles<64>{});
  return cudaErrorInvalidValue;
}

}  // namespace sparseprune::block
