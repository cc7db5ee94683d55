// From sizes to a kernel: the numbers of rows and tokens choose the tile.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/nm.cuh"
#include "kernels/cuda/nm_kernel.cuh"
#include "kernels/cuda/nm_multiply.cuh"

namespace sparseprune::nm {

// Bytes of shared memory of a thread block.
template <typename Tile, typename Input>
constexpr int kShared = Tile::kStages * Tile::kStageBytes + Tile::kTokens * Input::kTableBytes;

// Whether the current device has that much for one of Large: sm_86 and sm_89 have 99 KB.
template <typename Input>
bool large_fits() {
  int device = 0, most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         kShared<Large, Input> <= most;
}

template <typename Tile, typename T, typename Input, typename Output>
int launch(const Nm<T>& w, const Input& in, const Output& out, const Finish<T>& finish, int groups,
           void* stream) {
  using Multiply = typename MultiplyOf<T, Tile>::Type;
  const int64_t token_tiles = (int64_t{out.tokens} + Tile::kTokens - 1) / Tile::kTokens;
  const int64_t strips = strips_of(Tile::kRows, static_cast<int>(w.rows), groups);
  return start(nm_kernel<T, Tile, Multiply, Input, Output>, strips * token_tiles, Tile::kThreads,
               kShared<Tile, Input>, stream, w, in, out, finish, groups);
}

template <typename T>
Nm<T> typed(const Nm<void>& w) {
  return {static_cast<const T*>(w.values), w.places, w.rows, w.cols, w.n, w.m, w.taps};
}

}  // namespace sparseprune::nm
