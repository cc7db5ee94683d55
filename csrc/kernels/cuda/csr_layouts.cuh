// csr in every layout, Linear and Conv2d: simple kernels, correct for every shape; not tuned.
#pragma once
#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "formats/csr.h"
#include "kernels/cuda/csr_index.h"
#include "kernels/cuda/io.cuh"

namespace sparseprune::csr {

constexpr int kWarpsPerBlock = 8;

extern __shared__ float totals[];  // of the rows that go together, for every warp

// Where token t reads column c, and where it writes row r.
struct LinearAccess {
  const float* x;
  float* y;
  int64_t cols, rows;

  __device__ float read(int64_t token, int64_t, int64_t col) const { return x[token * cols + col]; }
  __device__ float* write(int64_t token, int64_t row) const { return y + token * rows + row; }
};

struct ConvAccess {
  const float* x;
  float* y;
  Conv2dShape s;
  int64_t out_h, out_w;

  __device__ float read(int64_t token, int64_t row, int64_t col) const {
    const int64_t image = token / (out_h * out_w), pixel = token % (out_h * out_w);
    const int64_t kx = col % s.kernel_w, ky = col / s.kernel_w % s.kernel_h;
    const int64_t channel =
        row / (s.rows / s.groups) * (s.channels / s.groups) + col / (s.kernel_w * s.kernel_h);
    const int64_t i = pixel / out_w * s.stride_h + ky * s.dilation_h - s.padding_h;
    const int64_t j = pixel % out_w * s.stride_w + kx * s.dilation_w - s.padding_w;
    if (i < 0 || i >= s.height || j < 0 || j >= s.width) return 0.f;
    return x[((image * s.channels + channel) * s.height + i) * s.width + j];
  }
  __device__ float* write(int64_t token, int64_t row) const {
    const int64_t pixels = out_h * out_w;
    return y + (token / pixels * s.rows + row) * pixels + token % pixels;
  }
};

__device__ inline float warp_sum(float value) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// A warp per (token, row): lanes share the nonzeros.
template <typename Access>
__global__ void multiply(CsrRows w, Access access, int64_t tokens, const float* bias, Clamp clamp) {
  const int64_t each = blockDim.x / kLanes, warps = gridDim.x * each;
  const int lane = threadIdx.x % kLanes;
  for (int64_t i = blockIdx.x * each + threadIdx.x / kLanes; i < tokens * w.rows; i += warps) {
    const int64_t token = i / w.rows, row = i % w.rows;
    float sum = 0.f;
    for (int64_t n = w.row_start[row] + lane; n < w.row_start[row + 1]; n += kLanes)
      sum += w.values[n] * access.read(token, row, w.columns[n]);
    sum = warp_sum(sum);
    if (lane == 0) *access.write(token, row) = cuda::limit(sum + (bias ? bias[row] : 0.f), clamp);
  }
}

// A warp per (token, rows that go together: a group or a segment of groups): lanes share the
// columns of each pattern.
template <typename Access>
__global__ void multiply(CsrGroups w, Access access, int64_t tokens, const float* bias,
                         Clamp clamp) {
  const int64_t each = blockDim.x / kLanes, warps = gridDim.x * each, groups = w.groups();
  const int64_t units = (w.rows + w.unit() - 1) / w.unit();
  const int lane = threadIdx.x % kLanes, before = static_cast<int>(w.cell) - CsrGroups::kPatterns;
  float* sum = totals + threadIdx.x / kLanes * CsrGroups::kSegment;
  for (int64_t i = blockIdx.x * each + threadIdx.x / kLanes; i < tokens * units; i += warps) {
    const int64_t token = i / units, first = i % units * w.unit();
    const int rows = static_cast<int>(min(w.unit(), w.rows - first));
    for (int r = lane; r < rows; r += kLanes) sum[r] = bias ? bias[first + r] : 0.f;
    __syncwarp();
    for (int64_t block = 0; block < w.blocks(); ++block) {
      int64_t cell = block * groups + first / CsrGroups::kRows;
      for (int done = 0; done < rows; done += CsrGroups::kRows, ++cell) {
        const uint8_t* numbers = w.counts + cell * w.cell;
        int64_t value = w.starts[2 * cell], column = w.starts[2 * cell + 1];
        float part[CsrGroups::kRows] = {};
        for (int pattern = 1; pattern <= CsrGroups::kPatterns; ++pattern) {
          const int count = numbers[before + pattern - 1], width = __popc(pattern);
          for (int n = lane; n < count; n += kLanes) {
            const float x = access.read(token, first, block * w.block + w.columns[column + n]);
            const float* v = w.values + value + int64_t{n} * width;
            for (int r = 0; r < CsrGroups::kRows; ++r)
              if (pattern >> r & 1) part[r] += *v++ * x;
          }
          value += int64_t{count} * width;
          column += count;
        }
        for (int r = 0; r < CsrGroups::kRows; ++r) {
          const float total = warp_sum(part[r]);
          if (lane == 0 && done + r < rows) sum[w.numbered() ? numbers[r] : done + r] += total;
        }
      }
    }
    __syncwarp();
    for (int r = lane; r < rows; r += kLanes)
      *access.write(token, first + r) = cuda::limit(sum[r], clamp);
    __syncwarp();
  }
}

// A warp per (token, segment): it walks the pairs of rows, lanes share the columns.
template <typename Access>
__global__ void multiply(CsrSorted w, Access access, int64_t tokens, const float* bias,
                         Clamp clamp) {
  const int64_t each = blockDim.x / kLanes, warps = gridDim.x * each, segments = w.segments();
  const int lane = threadIdx.x % kLanes;
  float* sum = totals + threadIdx.x / kLanes * CsrSorted::kRows;
  for (int64_t i = blockIdx.x * each + threadIdx.x / kLanes; i < tokens * segments; i += warps) {
    const int64_t token = i / segments, segment = i % segments, first = segment * CsrSorted::kRows;
    const int rows = static_cast<int>(min(int64_t{CsrSorted::kRows}, w.rows - first));
    for (int r = lane; r < rows; r += kLanes) sum[r] = bias ? bias[first + r] : 0.f;
    __syncwarp();
    for (int64_t block = 0; block < w.blocks(); ++block) {
      const uint8_t* pair = w.counts + CsrSorted::kPair * (block * w.pairs() + first / 2);
      const int32_t* start = w.starts + 2 * (block * segments + segment);
      const float* value = w.values + start[0];
      const uint8_t* column = w.columns + start[1];
      for (int r = 0; r < rows; r += 2, pair += CsrSorted::kPair) {
        const int shared = pair[2], less = shared + pair[3], all = less + pair[4];
        float part1 = 0.f, part2 = 0.f;
        for (int n = lane; n < all; n += kLanes) {
          const float x = access.read(token, first, block * w.block + column[n]);
          const float v = value[n < shared ? 2 * n : shared + n];
          (n < less ? part1 : part2) += v * x;
          if (n < shared) part2 += value[2 * n + 1] * x;
        }
        part1 = warp_sum(part1), part2 = warp_sum(part2);
        if (lane == 0) sum[pair[0]] += part1, sum[pair[1]] += part2;
        value += shared + all, column += all;
      }
    }
    __syncwarp();
    for (int r = lane; r < rows; r += kLanes)
      *access.write(token, first + r) = cuda::limit(sum[r], clamp);
    __syncwarp();
  }
}

// Floats of shared memory that a thread block needs.
inline int64_t shared_floats(const CsrRows&) { return 0; }
inline int64_t shared_floats(const CsrGroups&) { return kWarpsPerBlock * CsrGroups::kSegment; }
inline int64_t shared_floats(const CsrSorted&) { return kWarpsPerBlock * CsrSorted::kRows; }

}  // namespace sparseprune::csr
