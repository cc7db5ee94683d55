// From sizes to a kernel: the numbers of rows and tokens choose the tile.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/nm.cuh"
#include "kernels/cuda/nm_kernel.cuh"
#include "kernels/cuda/nm_multiply.cuh"

namespace sparseprune::nm {

template <typename Tile, typename T, typename Input, typename Output>
int launch(const Nm<T>& w, const Input& in, const Output& out, const Finish<T>& finish, int groups,
           void* stream) {
  using Multiply = typename MultiplyOf<T, Tile>::Type;
  constexpr int kShared = Tile::kStages * Tile::kStageBytes + Tile::kTokens * Input::kTableBytes;
  const int64_t token_tiles = (int64_t{out.tokens} + Tile::kTokens - 1) / Tile::kTokens;
  const int64_t strips = strips_of(Tile::kRows, static_cast<int>(w.rows), groups);
  return start(nm_kernel<T, Tile, Multiply, Input, Output>, strips * token_tiles, Tile::kThreads,
               kShared, stream, w, in, out, finish, groups);
}

template <typename T>
Nm<T> typed(const Nm<void>& w) {
  return {static_cast<const T*>(w.values), w.places, w.rows, w.cols, w.n, w.m, w.taps};
}

}  // namespace sparseprune::nm
