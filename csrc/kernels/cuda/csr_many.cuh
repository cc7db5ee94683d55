// The csr kernel for many tokens: slabs of x in shared memory, sums in registers.
#pragma once
#include "formats/csr.h"
#include "kernels/cuda/csr_index.h"
#include "kernels/cuda/io.cuh"

namespace sparseprune::csr {

// kEach neighbouring floats.
template <int kEach>
struct alignas(4 * kEach) Floats {
  float of[kEach];
};

// A slab of x [tokens, cols], tokens innermost. `vector`: pieces are whole and aligned.
template <typename T, typename Tile>
__device__ void load_slab(const T* x, int64_t cols, int64_t first_column, int64_t left_tokens,
                          bool vector, float* slab) {
  struct alignas(kPiece * sizeof(T)) Elements {
    T of[kPiece];
  };
#pragma unroll 4
  for (int p = threadIdx.x; p < Tile::kPieces; p += kManyThreads) {
    const Piece piece = piece_of<Tile>(p);
    const int64_t column = first_column + piece.column;
    const T* from = x + piece.token * cols + column;
    const int live =
        piece.token < left_tokens ? static_cast<int>(min(cols - column, int64_t{kPiece})) : 0;
    Elements elements;
    if (vector && live == kPiece) {
      elements = *reinterpret_cast<const Elements*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i)
        if (i < live)
          elements.of[i] = from[i];
        else
          cuda::narrow(0.f, &elements.of[i]);
    }
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      slab[place_of<Tile>(piece.column + i, piece.token)] = cuda::widen(elements.of[i]);
  }
}

// The nonzeros of a row that lie before a column, a warp's width at a time.
template <typename T>
struct Cursor {
  int at, end;  // of the row's nonzeros that are left

  // Lane l gets value and column l of those that come next, and how many of them lie before
  // `column`; all lanes the same count, and the cursor moves past them.
  __device__ int take(const CsrRowsOf<T>& w, int column, float& value, int& place) {
    const int n = at + static_cast<int>(threadIdx.x % kLanes);
    place = n < end ? w.columns[n] : column;
    value = n < end ? cuda::widen(w.values[n]) : 0.f;
    const int count = __popc(__ballot_sync(0xffffffffu, place < column));
    at += count;
    return count;
  }
};

// y of 64 rows and a tile of tokens.
template <typename T, int kEach>
__global__ void __launch_bounds__(kManyThreads, 2)
    many_kernel(CsrRowsOf<T> w, const T* x, int64_t tokens, bool vector, cuda::Finish<T> finish,
                T* y) {
  using Tile = csr::Tile<kEach>;
  extern __shared__ __align__(16) float slab[];
  const Corner corner = corner_of<Tile>(blockIdx.x, w.rows);
  const int lane = threadIdx.x % kLanes;
  const int64_t row = corner.row + threadIdx.x / kLanes * kOwnRows;
  const int64_t left = tokens - corner.token;
  x += corner.token * w.cols;

  Cursor<T> cursors[kOwnRows];
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const bool inside = row + r < w.rows;
    cursors[r] = {inside ? w.row_start[row + r] : 0, inside ? w.row_start[row + r + 1] : 0};
  }
  float sums[kOwnRows][kEach] = {};
  for (int64_t first = 0; first < w.cols; first += kSlab) {
    __syncthreads();  // all warps are done with the slab before
    load_slab<T, Tile>(x, w.cols, first, left, vector, slab);
    __syncthreads();
    const int until = static_cast<int>(first) + kSlab;
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
      int count = kLanes;
      while (count == kLanes) {
        float value;
        int column;
        count = cursors[r].take(w, until, value, column);
        for (int i = 0; i < count; ++i) {
          const float v = __shfl_sync(0xffffffffu, value, i);
          const int c = __shfl_sync(0xffffffffu, column, i) - static_cast<int>(first);
          const auto read =
              *reinterpret_cast<const Floats<kEach>*>(slab + place_of<Tile>(c, lane * kEach));
#pragma unroll
          for (int t = 0; t < kEach; ++t) sums[r][t] = fmaf(v, read.of[t], sums[r][t]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int t = 0; t < kEach; ++t) {
      const int token = lane * kEach + t;
      if (row + r < w.rows && token < left)
        y[(corner.token + token) * w.rows + row + r] =
            finish(sums[r][t], static_cast<int>(row + r));
    }
}

}  // namespace sparseprune::csr
