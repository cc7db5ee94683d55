// The kernel of bitmask layers: a cluster of thread blocks per unit of 64 rows, a warp per strip of
// columns. `Multiply` says how they are multiplied: by FMA or tensor cores.
#pragma once
#include "kernels/cuda/bitmask_ring.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/io.cuh"

namespace sparseprune::bitmask {

// Sum of v over lanes 0 to this one.
__device__ inline int sum_to_here(int v) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(~0u, v, step);
    if (lane_of_warp() >= step) v += other;
  }
  return v;
}

template <typename T>
__device__ const uint2* masks_of(const BitmaskOf<T>& w, int64_t unit) {
  return reinterpret_cast<const uint2*>(w.masks) + unit * w.cols;
}

// The bits of a strip, by all lanes.
template <typename T>
__device__ int count_bits(const BitmaskOf<T>& w, int64_t unit, Strip strip) {
  int count = 0;
  const uint2* masks = masks_of(w, unit);
  const int64_t end = min(int64_t{strip.end} * kSlab, w.cols);
#pragma unroll 4
  for (int64_t c = int64_t{strip.begin} * kSlab + lane_of_warp(); c < end; c += kLanes) {
    const uint2 mask = masks[c];
    count += bits_of(mask.x, mask.y);
  }
  return __reduce_add_sync(~0u, count);
}

// One strip, whose values are [first, last): decode a slab, then multiply its columns, part by part
// as the ring has them.
template <typename T, typename Multiply>
__device__ void multiply_strip(const BitmaskOf<T>& w, int64_t unit, Strip strip, int64_t first,
                               int64_t last, typename Multiply::Shared& own, Multiply& sums) {
  constexpr uint32_t kSize = sizeof(T);
  const int lane = lane_of_warp();
  uint32_t byte = first * kSize % kCopyBytes;  // of the slab's first value
  const char* from = reinterpret_cast<const char*>(w.values + first) - byte;
  Ring ring(own.ring, from, byte + static_cast<uint32_t>(last - first) * kSize);
  const uint2* masks = masks_of(w, unit);
  const auto mask_in = [&](int slab) {
    const int64_t c = int64_t{slab} * kSlab + lane;
    return slab < strip.end && c < w.cols ? masks[c] : uint2{0, 0};
  };
  uint2 ahead = mask_in(strip.begin);
  for (int slab = strip.begin; slab < strip.end; ++slab) {
    const uint2 mask = ahead;
    const int bits = bits_of(mask.x, mask.y), to_here = sum_to_here(bits);
    __syncwarp();  // all lanes are done with the slab before
    own.columns[lane] = column_of(mask.x, mask.y, byte + (to_here - bits) * kSize, kSize);
    byte += __shfl_sync(~0u, to_here, kLanes - 1) * kSize;
    ahead = mask_in(slab + 1);
    sums.slab(own, slab + 1 < strip.end);
    __syncwarp();
    // At once where the slab leaves room in the ring for what follows; mostly it does.
    const uint32_t first_byte = own.columns[0].half[0].start;
    const bool whole = byte - first_byte <= kRingBytes / 2;
    if (whole) ring.need(first_byte, byte);
#pragma unroll 1
    for (int part = 0; part < kSlab; part += Multiply::kColumns) {
      const int next = part + Multiply::kColumns;
      sums.approach();
      if (!whole)
        ring.need(own.columns[part].half[0].start,
                  next < kSlab ? own.columns[next].half[0].start : byte);
      sums.multiply(ring, own, part);
    }
  }
  wait_copies<0>();
}

// One output over the nonzeros alone.
template <typename T>
__device__ float exact_sum(const BitmaskOf<T>& w, int64_t unit, int row, const T* x) {
  const uint2* masks = masks_of(w, unit);
  const T* value = w.values + w.starts[unit];
  float sum = 0.f;
#pragma unroll 1
  for (int64_t c = 0; c < w.cols; ++c) {
    const uint64_t kept = uint64_t{masks[c].y} << 32 | masks[c].x;
    const int before = __popcll(kept & ((uint64_t{1} << row) - 1));
    if (kept >> row & 1) sum = fmaf(cuda::widen(value[before]), cuda::widen(x[c]), sum);
    value += __popcll(kept);
  }
  return sum;
}

// A round's sums: adds the warps of the cluster in their order, each block some outputs. Tensor
// cores multiply the zeros of W as well: what is not finite is computed anew.
template <typename T, typename Multiply>
__device__ void finish_unit(const BitmaskOf<T>& w, int64_t unit, int round,
                            const typename Multiply::Shared* warps, const cuda::TokenInput<T>& in,
                            const cuda::Finish<T>& finish, T* y) {
  const int blocks = cuda::cluster_size(), first_token = round * kRound;
  const int outputs = kRows * min(in.tokens - first_token, kRound);
  for (int i = cuda::cluster_rank() * blockDim.x + threadIdx.x; i < outputs;
       i += blocks * blockDim.x) {
    const int row = i % kRows;
    const int64_t to = unit * kRows + row, token = first_token + i / kRows;
    if (to >= w.rows) continue;
    float sum = 0.f;
    for (int block = 0; block < blocks; ++block)
      for (int warp = 0; warp < static_cast<int>(blockDim.x) / kLanes; ++warp)
        sum += cuda::cluster_read(reinterpret_cast<const float*>(warps[warp].ring) + i, block);
    if (!Multiply::kExact && !isfinite(sum)) sum = exact_sum(w, unit, row, in.x + token * w.cols);
    y[token * w.rows + to] = finish(sum, static_cast<int>(to));
  }
}

// Where a strip's values begin, by the bits of all strips before it; counts [warps] in shared
// memory.
template <typename T>
__device__ int64_t first_value(const BitmaskOf<T>& w, int64_t unit, int count, int* counts) {
  const int warp = warp_of_block(), warps = blockDim.x / kLanes, rank = cuda::cluster_rank();
  if (lane_of_warp() == 0) counts[warp] = count;
  cuda::cluster_sync();
  int64_t first = w.starts[unit];
  for (int i = 0; i < rank * warps + warp; ++i)
    first += cuda::cluster_read(counts + i % warps, i / warps);
  return first;
}

// y [tokens, rows] of up to 8 tokens per round; a cluster of thread blocks of whole warps for every
// unit.
template <typename T, typename Multiply>
__global__ void __launch_bounds__(Multiply::kMostWarps* kLanes, 1)
    bitmask_kernel(BitmaskOf<T> w, cuda::TokenInput<T> in, cuda::Finish<T> finish, T* y) {
  using Shared = typename Multiply::Shared;
  const int blocks = cuda::cluster_size(), warps = blockDim.x / kLanes, warp = warp_of_block();
  const int64_t unit = blockIdx.x / blocks;
  auto* all = reinterpret_cast<Shared*>(cuda::block_memory());
  auto* counts = reinterpret_cast<int*>(all + warps);
  const Strip strip =
      strip_of(cuda::cluster_rank() * warps + warp, blocks * warps, slabs_of(w.cols));
  const int count = count_bits(w, unit, strip);
  const int64_t first = first_value(w, unit, count, counts);

  Multiply sums(in, strip.begin * kSlab);
  multiply_strip(w, unit, strip, first, first + count, all[warp], sums);
  __syncwarp();
#pragma unroll 1
  for (int round = 0; round < Multiply::kRounds; ++round) {
    sums.put(round, reinterpret_cast<float*>(all[warp].ring));
    cuda::cluster_sync();
    finish_unit<T, Multiply>(w, unit, round, all, in, finish, y);
    cuda::cluster_sync();  // all blocks have read these sums, and none ends before
  }
}

}  // namespace sparseprune::bitmask
