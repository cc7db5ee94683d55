// How a stage in shared memory is multiplied: 16-bit types by sparse tensor cores, float by FMA.
#pragma once
#include "kernels/cuda/add_parts.cuh"
#include "kernels/cuda/nm_index.h"
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::nm {

// The places of `row` in a slab, as one number per 32 columns (of float: per slab).
template <typename Tile>
__device__ uint32_t places_of(const char* slab, int row, int number) {
  const char* at = slab + Tile::kPlacesAt + row * kPlaceBytes + number * sizeof(uint32_t);
  return *reinterpret_cast<const uint32_t*>(at);
}

// mma.sp.m16n8k32 with rows of W as its rows and tokens as its columns. Sums are float.
template <typename T, typename Tile>
class SparseTensorCores {
 public:
  __device__ void step(const char* stage) {
    const Share share = share_of<Tile>(threadIdx.x / 32);
#pragma unroll
    for (int i = 0; i < kMySteps; ++i) {
      const int step = share.k * kMySteps + i;
      multiply(stage + step / kSlabSteps * Tile::kSlabBytes, step % kSlabSteps, share);
    }
  }

  // All sums of the tile to a Store (io.cuh), each once.
  template <typename Store>
  __device__ void finish(char* shared, const Store& store) {
    if constexpr (Tile::kWarpsK > 1) {
      static_assert(sizeof(sums_) * Tile::kThreads <= Tile::kStages * Tile::kStageBytes);
      float* room = reinterpret_cast<float*>(shared);
      if (!add_parts<Tile::kThreads, Tile::kWarpsK>(sums_, room)) return;
    }
    const Share share = share_of<Tile>(threadIdx.x / 32);
    const int lane = threadIdx.x % 32;
    const bool first = gives_first(lane);
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      const auto to = store.token(share.token + n * mma::kN + traded_place(lane, 0).col);
#pragma unroll
      for (int m = 0; m < kMs; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float a = sums_[m][n][2 * h], b = sums_[m][n][2 * h + 1];
          const float got = __shfl_xor_sync(~0u, first ? a : b, kTradeLanes);
          store(to, share.row + m * mma::kM + traded_place(lane, h).row, first ? got : a,
                first ? b : got);
        }
    }
  }

 private:
  static constexpr int kSlabSteps = kStage<T> / mma::kSparseK;
  static constexpr int kMySteps = Tile::kSlabs * kSlabSteps / Tile::kWarpsK;
  static constexpr int kMs = Tile::kWarpRows / mma::kM, kNs = Tile::kWarpTokens / mma::kN;
  static_assert(kMySteps * Tile::kWarpsK == Tile::kSlabs * kSlabSteps, "warps share k evenly");

  // 32 columns, the `half`-th of the slab's.
  __device__ void multiply(const char* slab, int half, Share share) {
    const int lane = threadIdx.x % 32;
    const SharedAddress x = shared_address(slab), w = x + Tile::kXBytes;
    uint32_t a[kMs][4], places[kMs];
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      const mma::Place p = mma::a_address(lane);
      const int row = share.row + m * mma::kM;
      load_matrices(a[m], w + value_byte(row + p.row, 2 * half + p.col));
      places[m] = mma::metadata(lane, places_of<Tile>(slab, row + lane / 4, half),
                                places_of<Tile>(slab, row + lane / 4 + 8, half));
    }
#pragma unroll
    for (int n = 0; n < kNs; ++n) {
      uint32_t b[4];
      const mma::Place p = mma::sparse_b_address(lane);
      load_matrices(b, x + chunk_byte(share.token + n * mma::kN + p.row, 4 * half + p.col));
#pragma unroll
      for (int m = 0; m < kMs; ++m) multiply_add_sparse(sums_[m][n], a[m], b, places[m], T{});
    }
  }

  float sums_[kMs][kNs][mma::kCRegs] = {};
};

// float: each thread has some rows times some tokens. A group of W is a value per column and four
// predicates, so that an infinite x that W skips is skipped. Never TF32.
template <typename Tile>
class Fma {
 public:
  __device__ void step(const char* stage) {
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) slab(stage + s * Tile::kSlabBytes);
  }

  template <typename Store>
  __device__ void finish(char*, const Store& store) {
#pragma unroll
    for (int t = 0; t < kMyTokens; ++t) {
      const auto to = store.token(token(t));
#pragma unroll
      for (int r = 0; r < kMyRows; ++r) store(to, row(r), sums_[t][r]);
    }
  }

 private:
  // Eight lanes have neighbouring rows: they read without conflicts and write whole sectors.
  static constexpr int kAcross = 8;
  static constexpr int kMyRows = Tile::kRows / kAcross, kDown = Tile::kThreads / kAcross;
  static constexpr int kMyTokens = Tile::kTokens / kDown;
  static_assert(kMyRows >= 1 && kMyTokens >= 1);

  __device__ static int row(int r) { return threadIdx.x % kAcross + r * kAcross; }
  __device__ static int token(int t) { return threadIdx.x / kAcross + t * kDown; }

  __device__ void slab(const char* slab) {
    for (int group = 0; group < kChunks; ++group) {  // a chunk of x, half a chunk of values
      float4 x[kMyTokens];
#pragma unroll
      for (int t = 0; t < kMyTokens; ++t)
        x[t] = *reinterpret_cast<const float4*>(slab + chunk_byte(token(t), group));
#pragma unroll
      for (int r = 0; r < kMyRows; ++r) {
        const char* values = slab + Tile::kXBytes + value_byte(row(r), group / 2) + group % 2 * 8;
        const uint32_t places = places_of<Tile>(slab, row(r), 0) >> 4 * group;
        add(*reinterpret_cast<const float2*>(values), places & 3, places >> 2 & 3, x, r);
      }
    }
  }

  __device__ void add(float2 w, uint32_t first, uint32_t second, const float4 (&x)[kMyTokens],
                      int r) {
    const float one = first == 1 ? w.x : w.y, two = first == 2 ? w.x : w.y;
#pragma unroll
    for (int t = 0; t < kMyTokens; ++t) {
      float& sum = sums_[t][r];
      if (first == 0) sum = fmaf(x[t].x, w.x, sum);
      if (first == 1 || second == 1) sum = fmaf(x[t].y, one, sum);
      if (first == 2 || second == 2) sum = fmaf(x[t].z, two, sum);
      if (second == 3) sum = fmaf(x[t].w, w.y, sum);
    }
  }

  float sums_[kMyTokens][kMyRows] = {};
};

template <typename T, typename Tile>
struct MultiplyOf {
  using Type = SparseTensorCores<T, Tile>;
};
template <typename Tile>
struct MultiplyOf<float, Tile> {
  using Type = Fma<Tile>;
};

}  // namespace sparseprune::nm
