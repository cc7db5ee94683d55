// The csr kernel for few tokens: a warp per row, x in shared memory where it fits.
#pragma once
#include "formats/csr.h"
#include "kernels/cuda/csr_index.h"
#include "kernels/cuda/io.cuh"

namespace sparseprune::csr {

// Neighbouring values and columns, 16 and 8 or 16 bytes.
template <typename T>
struct alignas(16) Values {
  T of[kVector<T>];
};
template <typename T>
struct alignas(2 * kVector<T>) Columns {
  uint16_t of[kVector<T>];
};

// x of up to kTokens tokens, as [cols + 1, kTokens] in shared memory, zeros last; or where it lies.
template <typename T, int kTokens, bool kStaged>
struct Input {
  struct alignas(kTokens * sizeof(T)) All {
    T of[kTokens];
  };
  const T* x;
  const All* staged;
  int cols, tokens;

  __device__ void stage(All* to) {
    for (int c = threadIdx.x; c <= cols; c += blockDim.x) {
      All all;
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens && c < cols)
          all.of[t] = x[int64_t{t} * cols + c];
        else
          cuda::narrow(0.f, &all.of[t]);
      to[c] = all;
    }
    staged = to;
    __syncthreads();
  }
  // live: otherwise weight and column are another row's, and nothing is added.
  __device__ void add(float weight, int column, bool live, float (&sums)[kTokens]) const {
    if constexpr (kStaged) {
      const All all = staged[live ? column : cols];  // no branch, for 0 * inf would be NaN
      const float v = live ? weight : 0.f;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sums[t] = fmaf(v, cuda::widen(all.of[t]), sums[t]);
    } else if (live) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens) sums[t] = fmaf(weight, cuda::widen(x[int64_t{t} * cols + column]), sums[t]);
    }
  }
};

// Adds what one lane has of a row.
template <typename T, int kTokens, bool kStaged>
__device__ void add_row(const CsrRowsOf<T>& w, uint32_t stored, uint32_t begin, uint32_t end,
                        const Input<T, kTokens, kStaged>& in, float (&sums)[kTokens]) {
  const uint32_t last = end_vector<T>(end);
#pragma unroll 2
  for (uint32_t v = first_vector<T>(begin) + threadIdx.x % kLanes; v < last; v += kLanes) {
    Values<T> values{};
    Columns<T> columns{};
    if (whole<T>(v, stored)) {
      values = reinterpret_cast<const Values<T>*>(w.values)[v];
      columns = reinterpret_cast<const Columns<T>*>(w.columns)[v];
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kVector<T>; ++i) {
        if (!inside<T>(v, i, begin, end)) continue;
        values.of[i] = w.values[v * kVector<T> + i];
        columns.of[i] = w.columns[v * kVector<T> + i];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kVector<T>; ++i)
      in.add(cuda::widen(values.of[i]), columns.of[i], inside<T>(v, i, begin, end), sums);
  }
}

// y [tokens, rows] of up to kTokens tokens; thread blocks stride over the rows.
template <typename T, int kTokens, bool kStaged>
__global__ void __launch_bounds__(kFewWarps* kLanes, 1)
    few_kernel(CsrRowsOf<T> w, const T* x, int tokens, cuda::Finish<T> finish, T* y) {
  extern __shared__ __align__(16) char shared[];
  Input<T, kTokens, kStaged> in{x, nullptr, static_cast<int>(w.cols), tokens};
  if constexpr (kStaged)
    in.stage(reinterpret_cast<typename Input<T, kTokens, kStaged>::All*>(shared));
  const int lane = threadIdx.x % kLanes;
  const uint32_t stored = w.row_start[w.rows];
  const int64_t warps = blockDim.x / kLanes, step = gridDim.x * warps;
  int64_t row = blockIdx.x * warps + threadIdx.x / kLanes;
  uint32_t begin = row < w.rows ? w.row_start[row] : 0;
  uint32_t end = row < w.rows ? w.row_start[row + 1] : 0;
  for (; row < w.rows; row += step) {
    const int64_t next = row + step;  // its bounds are asked for ahead
    const uint32_t next_begin = next < w.rows ? w.row_start[next] : 0;
    const uint32_t next_end = next < w.rows ? w.row_start[next + 1] : 0;
    float sums[kTokens] = {};
    add_row(w, stored, begin, end, in, sums);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int other = kLanes / 2; other > 0; other /= 2)
        sums[t] += __shfl_xor_sync(0xffffffffu, sums[t], other);
      if (lane == t && t < tokens) y[t * w.rows + row] = finish(sums[t], static_cast<int>(row));
    }
    begin = next_begin, end = next_end;
  }
}

}  // namespace sparseprune::csr
