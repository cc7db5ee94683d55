// How decoded columns of a bitmask weight are multiplied by FMA, for few tokens.
#pragma once
#include "kernels/cuda/bitmask_ring.cuh"
#include "kernels/cuda/io.cuh"

namespace sparseprune::bitmask {

// A lane keeps the sums of its rows over a quarter of the columns. x comes a slab ahead, a column
// per lane, and goes through shared memory.
template <typename T, int kTokens>
class Fma {
 public:
  static constexpr int kMostTokens = kTokens, kRounds = 1, kColumns = kPart<T>;
  // More would leave too few registers for the sums.
  static constexpr int kMostWarps = kTokens > 2 ? 16 : 32;
  static constexpr bool kExact = true;  // no zero of W is multiplied
  struct Shared : Warp {
    float x[kSlab][kTokens];
  };

  // Of a strip that begins in this column.
  __device__ Fma(const cuda::TokenInput<T>& in, int column)
      : cols_(in.cols), left_(in.cols - column - lane_of_warp()), tokens_(in.tokens) {
    x_ = in.x + (cols_ - left_);
    load();
  }

  // All lanes are done with the slab before; `more` follow.
  __device__ void slab(Shared& own, bool more) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) own.x[lane_of_warp()][t] = ahead_[t];
    if (more) load();
  }
  __device__ void approach() {}

  // Columns [part, part + kColumns) of the slab.
  __device__ void multiply(const Ring& ring, const Shared& own, int part) {
    const int lane = lane_of_warp();
#pragma unroll
    for (int i = 0; i < kColumns; i += kAtOnce) {
      const int c = part + i + own_column(lane);
      const Own mine = own_of(own.columns[c], first_row(lane), sizeof(T));
      add(mine.kept, ring.at<T>(mine.byte), own.x[c]);
    }
  }

  // The warp's sums [kRound, rows].
  __device__ void put(int, float* to) const {
    const int lane = lane_of_warp();
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float sum = sums_[i][t];  // of four columns at once
#pragma unroll
        for (int step = kPer; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane < kPer) to[t * kRows + first_row(lane) + i] = sum;
      }
  }

 private:
  __device__ void load() {
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      ahead_[t] = left_ > 0 && t < tokens_ ? cuda::widen(x_[t * cols_]) : 0.f;
    x_ += kSlab, left_ -= kSlab;
  }

  // kept: bit i says that row i has one of the values, which follow each other.
  __device__ void add(uint32_t kept, const T* value, const float* x_from) {
    float x[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) x[t] = x_from[t];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!(kept >> i & 1)) continue;  // skipped, for 0 * inf would be NaN
      const float v = cuda::widen(*value++);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sums_[i][t] = fmaf(v, x[t], sums_[i][t]);
    }
  }

  const T* x_;
  int64_t cols_, left_;  // of all, and from this lane's next one on
  int tokens_;
  float ahead_[kTokens], sums_[kOwn][kTokens] = {};
};

}  // namespace sparseprune::bitmask
