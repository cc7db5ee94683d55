// How decoded columns of a bitmask weight are multiplied by tensor cores, for up to 64 tokens.
#pragma once
#include "kernels/cuda/bitmask_ring.cuh"
#include "kernels/cuda/io.cuh"

namespace sparseprune::bitmask {

// W is expanded in registers, where it lies as the fragments want it, and x is read where it lies:
// nothing but values and masks goes through shared memory. A warp multiplies what it expanded by
// all tiles of tokens.
template <typename T, int kTiles>
class TensorCores {
 public:
  static constexpr int kMostTokens = kTiles * kTile, kRounds = kTiles, kColumns = kStep;
  // More would leave too few registers for the sums.
  static constexpr int kMostWarps = kTiles > 4 ? 8 : kTiles > 2 ? 12 : 16;
  static constexpr bool kExact = false;  // zeros of W are multiplied
  using Shared = Warp;

  // Of a strip that begins in this column.
  __device__ TensorCores(const cuda::TokenInput<T>& in, int column)
      : cols_(in.cols), left_(in.cols - column - step_first(lane_of_warp())), vector_(in.vector) {
    const int token = step_token(lane_of_warp());
    from_ = in.x + token * cols_ + (in.cols - left_);
    live_ = (in.tokens - token + kTile - 1) / kTile;
  }

  __device__ void slab(Shared&, bool) {}

  // x of the next step, before its values are waited for; zeros past the last token or column.
  __device__ void approach() {
    const int live = left_ > 0 ? live_ : 0;
    if (vector_) {
      const T* from = from_;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile, from += kTile * cols_)
        x_[tile] = tile < live ? *reinterpret_cast<const uint2*>(from) : uint2{0, 0};
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        x_[tile] = gather(from_ + tile * kTile * cols_, tile < live ? left_ : 0);
    }
    from_ += kStep, left_ -= kStep;
  }

  __device__ void multiply(const Ring& ring, const Shared& own, int part) {
    uint32_t w[kFragments][mma::kARegs];
#pragma unroll
    for (int p = 0; p < kStepOwn / 2; ++p) expand(ring, own.columns + part, p, w);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int m = 0; m < kFragments; ++m)
        multiply_add(sums_[m][tile], w[m], x_[tile].x, x_[tile].y, T{});
  }

  // The warp's sums of a tile, [kTile, rows].
  __device__ void put(int round, float* to) const {
    const int lane = lane_of_warp();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile != round) continue;
#pragma unroll
      for (int m = 0; m < kFragments; ++m)
#pragma unroll
        for (int i = 0; i < mma::kCRegs; ++i) {
          const mma::Place at = mma::c_place(lane, i);
          to[at.col * kRows + unit_row(m, at.row)] = sums_[m][tile][i];
        }
    }
  }

 private:
  // Element by element: the first `live` of a lane's columns.
  __device__ static uint2 gather(const T* from, int live) {
    uint32_t x[kStepOwn];
#pragma unroll
    for (int i = 0; i < kStepOwn; ++i)
      x[i] = i < live ? *reinterpret_cast<const uint16_t*>(from + i) : 0;
    return {x[0] | x[1] << 16, x[2] | x[3] << 16};
  }

  // Own rows of the p-th pair of columns, side by side.
  __device__ static void expand(const Ring& ring, const Column* step, int p,
                                uint32_t (&w)[kFragments][mma::kARegs]) {
    const int lane = lane_of_warp();
    const Column* pair = step + step_first(lane) + 2 * p;
    const Own low = own_of(pair[0], step_row(lane), sizeof(T));
    const Own high = own_of(pair[1], step_row(lane), sizeof(T));
    SharedAddress at_low = ring.address(low.byte), at_high = ring.address(high.byte);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const uint32_t row = 1u << i;
      w[fragment_of(i)][register_of(i, p)] =
          take_pair(low.kept & row, at_low, high.kept & row, at_high);
    }
  }

  const T* from_;  // x of the lane's first token and next column
  int64_t cols_;
  int left_, live_;  // columns from there to the last, tiles that have the lane's token
  bool vector_;
  uint2 x_[kTiles];
  float sums_[kFragments][kTiles][mma::kCRegs] = {};
};

}  // namespace sparseprune::bitmask
