// How a stage in shared memory is multiplied: 16-bit types by tensor cores, float by FMA.
#pragma once
#include "kernels/cuda/add_parts.cuh"
#include "kernels/cuda/block_index.h"
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::block {

// mma.m16n8k16 with tokens as its rows and rows of W as its columns: both tiles have k innermost,
// which is what the fragments want. Sums are float.
template <typename T, typename Tile>
class TensorCores {
 public:
  __device__ void step(const char* tiles) {
    const SharedAddress x = shared_address(tiles), w = x + Tile::kTokens * kRowBytes;
    const int lane = threadIdx.x % 32;
    const Share share = share_of<Tile>(threadIdx.x / 32);
#pragma unroll
    for (int i = 0; i < kSteps / Tile::kWarpsK; ++i) {
      const int k = share.k * (kSteps / Tile::kWarpsK) + i;
      uint32_t a[kMs][4], b[kNs / 2][4];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        const mma::Place p = mma::a_address(lane);
        load_matrices(a[m], x + chunk_byte(share.token + m * mma::kM + p.row, 2 * k + p.col));
      }
#pragma unroll
      for (int n = 0; n < kNs / 2; ++n) {
        const mma::Place p = mma::b_address(lane);
        load_matrices(b[n], w + chunk_byte(share.row + n * 2 * mma::kN + p.row, 2 * k + p.col));
      }
#pragma unroll
      for (int m = 0; m < kMs; ++m)
#pragma unroll
        for (int n = 0; n < kNs; ++n)
          multiply_add(sums_[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], T{});
    }
  }

  // All sums of the tile to a Store (io.cuh), each once.
  template <typename Store>
  __device__ void finish(char* shared, const Store& store) {
    if constexpr (Tile::kWarpsK > 1) {
      static_assert(kWarps == Tile::kWarpsK, "all warps share one tile");
      static_assert(sizeof(sums_) * kThreads <= Tile::kStages * Tile::kStageBytes);
      float* room = reinterpret_cast<float*>(shared);
      if (!add_parts<kThreads, Tile::kWarpsK>(sums_, room)) return;
    }
    const Share share = share_of<Tile>(threadIdx.x / 32);
#pragma unroll
    for (int m = 0; m < kMs; ++m)
#pragma unroll
      for (int i = 0; i < mma::kCRegs; i += 2) {
        const mma::Place p = mma::c_place(threadIdx.x % 32, i);
        const auto to = store.token(share.token + m * mma::kM + p.row);
#pragma unroll
        for (int n = 0; n < kNs; ++n)
          store(to, share.row + n * mma::kN + p.col, sums_[m][n][i], sums_[m][n][i + 1]);
      }
  }

 private:
  static constexpr int kSteps = kStage<T> / mma::kK;  // of a stage
  static constexpr int kMs = Tile::kWarpTokens / mma::kM, kNs = Tile::kWarpRows / mma::kN;

  float sums_[kMs][kNs][mma::kCRegs] = {};
};

// float: each thread has some rows times some tokens. Never TF32.
template <typename Tile>
class Fma {
 public:
  __device__ void step(const char* tiles) {
    const char *x = tiles, *w = tiles + Tile::kTokens * kRowBytes;
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      float4 a[kMyTokens], b[kMyRows];
#pragma unroll
      for (int t = 0; t < kMyTokens; ++t) a[t] = load(x + chunk_byte(token(t), chunk));
#pragma unroll
      for (int r = 0; r < kMyRows; ++r) b[r] = load(w + chunk_byte(row(r), chunk));
#pragma unroll
      for (int t = 0; t < kMyTokens; ++t)
#pragma unroll
        for (int r = 0; r < kMyRows; ++r) sums_[t][r] = dot(a[t], b[r], sums_[t][r]);
    }
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
  static constexpr int kMyRows = Tile::kRows / kAcross, kDown = kThreads / kAcross;
  static constexpr int kMyTokens = Tile::kTokens / kDown;
  static_assert(kMyRows >= 1 && kMyTokens >= 1);

  __device__ static int row(int r) { return threadIdx.x % kAcross + r * kAcross; }
  __device__ static int token(int t) { return threadIdx.x / kAcross + t * kDown; }
  __device__ static float dot(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  __device__ static float4 load(const char* p) { return *reinterpret_cast<const float4*>(p); }

  float sums_[kMyTokens][kMyRows] = {};
};

template <typename T, typename Tile>
struct MultiplyOf {
  using Type = TensorCores<T, Tile>;
};
template <typename Tile>
struct MultiplyOf<float, Tile> {
  using Type = Fma<Tile>;
};

}  // namespace sparseprune::block
