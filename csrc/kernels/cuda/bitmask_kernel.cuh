// The kernel of bitmask layers: a thread block per unit of 64 rows, a warp per strip of columns.
#pragma once
#include "kernels/cuda/bitmask_index.h"
#include "kernels/cuda/io.cuh"

namespace sparseprune::bitmask {

constexpr unsigned kAll = 0xffffffffu;

__device__ inline int lane_of_warp() { return threadIdx.x % kLanes; }
__device__ inline int warp_of_block() { return threadIdx.x / kLanes; }

// Sum of v over lanes 0 to this one.
__device__ inline int sum_to_here(int v) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(kAll, v, step);
    if (lane_of_warp() >= step) v += other;
  }
  return v;
}

// At most the `pending` latest chunks are still under way; may wait for some of them as well.
__device__ inline void wait_but_for(uint32_t pending) {
  switch (waited_for(pending)) {
    case 6:
      return wait_copies<6>();
    case 4:
      return wait_copies<4>();
    case 2:
      return wait_copies<2>();
    case 1:
      return wait_copies<1>();
    default:
      return wait_copies<0>();
  }
}

// The values of a strip on their way through a warp's ring.
class Ring {
 public:
  // from: the first value, rounded down to a whole copy; bytes: from there to the last one's end.
  __device__ Ring(char* ring, const char* from, uint32_t bytes)
      : ring_(ring), from_(from), bytes_(bytes) {}

  // All values in bytes [begin, end) are there; what lies before `begin` may be overwritten.
  __device__ void need(uint32_t begin, uint32_t end) {
    __syncwarp();  // all lanes are done with what lies before
    const uint32_t until = ask_until(bytes_, begin);
#pragma unroll 1
    for (; asked_ < until; ++asked_) copy(asked_);
    wait_but_for(asked_ - chunks_to(end));
    __syncwarp();
  }
  template <typename T>
  __device__ const T* at(uint32_t byte) const {
    return reinterpret_cast<const T*>(ring_ + place_of(byte));
  }

 private:
  __device__ void copy(uint32_t chunk) const {
    const int lane = lane_of_warp();
    const uint32_t byte = chunk * kChunkBytes + lane * kCopyBytes;
    const uint32_t live = byte < bytes_ ? min(kCopyBytes, bytes_ - byte) : 0;
    const char* from = live ? from_ + byte : from_;
    copy_async(shared_address(ring_ + place_of(byte)), from, live);
    if (repeated(chunk, lane))
      copy_async(shared_address(ring_ + kRingBytes + lane * kCopyBytes), from, live);
    commit_copies();
  }

  char* ring_;
  const char* from_;
  uint32_t bytes_, asked_ = 0;
};

// What a lane loads of one column of a slab, a slab ahead.
template <typename T, int kTokens>
class Ahead {
 public:
  uint2 mask;
  float x[kTokens];

  __device__ Ahead(const BitmaskOf<T>& w, int64_t unit, const T* x, int tokens, int slab)
      : cols_(w.cols), left_(w.cols - int64_t{slab} * kSlab - lane_of_warp()), tokens_(tokens) {
    const int64_t c = w.cols - left_;
    masks_ = reinterpret_cast<const uint2*>(w.masks) + unit * w.cols + c;
    x_ = x + c;
  }

  __device__ void load() {
    const bool inside = left_ > 0;
    mask = inside ? *masks_ : uint2{0, 0};
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      x[t] = inside && t < tokens_ ? cuda::widen(x_[t * cols_]) : 0.f;
    masks_ += kSlab, x_ += kSlab, left_ -= kSlab;
  }

 private:
  const uint2* masks_;
  const T* x_;
  int64_t cols_, left_;
  int tokens_;
};

// The sums of a lane: its rows, and the tokens.
template <int kTokens>
struct Sums {
  float of[kOwn][kTokens] = {};

  // kept: bit i says that row i has one of the values, which follow each other.
  template <typename T>
  __device__ void add(uint32_t kept, const T* value, const float* x_from) {
    float x[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) x[t] = x_from[t];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!(kept >> i & 1)) continue;  // skipped, for 0 * inf would be NaN
      const float v = cuda::widen(*value++);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) of[i][t] = fmaf(v, x[t], of[i][t]);
    }
  }
};

// The bits of a strip, by all lanes.
template <typename T>
__device__ int count_bits(const BitmaskOf<T>& w, int64_t unit, Strip strip) {
  int count = 0;
  const auto* masks = reinterpret_cast<const uint2*>(w.masks) + unit * w.cols;
  const int64_t end = min(int64_t{strip.end} * kSlab, w.cols);
#pragma unroll 4
  for (int64_t c = int64_t{strip.begin} * kSlab + lane_of_warp(); c < end; c += kLanes) {
    const uint2 mask = masks[c];
    count += bits_of(mask.x, mask.y);
  }
  return __reduce_add_sync(kAll, count);
}

// One strip, whose values are [first, last): decode a slab, then multiply its columns, part by part
// as the ring has them.
template <typename T, int kTokens>
__device__ void multiply_strip(const BitmaskOf<T>& w, int64_t unit, Strip strip, int64_t first,
                               int64_t last, const T* x, int tokens, Warp<kTokens>& own,
                               Sums<kTokens>& sums) {
  constexpr uint32_t kSize = sizeof(T);
  const int lane = lane_of_warp();
  uint32_t byte = first * kSize % kCopyBytes;  // of the slab's first value
  const char* from = reinterpret_cast<const char*>(w.values + first) - byte;
  Ring ring(own.ring, from, byte + static_cast<uint32_t>(last - first) * kSize);
  Ahead<T, kTokens> ahead(w, unit, x, tokens, strip.begin);
  ahead.load();
  for (int slab = strip.begin; slab < strip.end; ++slab) {
    const uint2 mask = ahead.mask;
    const int bits = bits_of(mask.x, mask.y), to_here = sum_to_here(bits);
    __syncwarp();  // all lanes are done with the slab before
    own.columns[lane] = column_of(mask.x, mask.y, byte + (to_here - bits) * kSize, kSize);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) own.x[lane][t] = ahead.x[t];
    byte += __shfl_sync(kAll, to_here, kLanes - 1) * kSize;
    if (slab + 1 < strip.end) ahead.load();
    __syncwarp();
#pragma unroll 1
    for (int part = 0; part < kSlab; part += kPart<T>) {
      const int next = part + kPart<T>;
      const uint32_t begin = own.columns[part].half[0].start;
      const uint32_t end = next < kSlab ? own.columns[next].half[0].start : byte;
      if (begin == end) continue;
      ring.need(begin, end);
#pragma unroll
      for (int i = 0; i < kPart<T>; i += kAtOnce) {
        const int c = part + i + own_column(lane);
        const Own mine = own_of(own.columns[c].half[own_half(lane)], lane, kSize);
        sums.add(mine.kept, ring.at<T>(mine.byte), own.x[c]);
      }
    }
  }
  wait_copies<0>();
}

// Adds the warps of the block in their order; sums [warps, rows, kTokens] are in shared memory.
template <typename T, int kTokens>
__device__ void finish_unit(const BitmaskOf<T>& w, int64_t unit, const char* shared, int warps,
                            int tokens, const cuda::Finish<T>& finish, T* y) {
  for (int i = threadIdx.x; i < kRows * kTokens; i += blockDim.x) {
    const int row = i % kRows, t = i / kRows;
    const int64_t to = unit * kRows + row;
    if (to >= w.rows || t >= tokens) continue;
    float sum = 0.f;
    for (int warp = 0; warp < warps; ++warp)
      sum +=
          reinterpret_cast<const float*>(shared + warp * sizeof(Warp<kTokens>))[row * kTokens + t];
    y[t * w.rows + to] = finish(sum, static_cast<int>(to));
  }
}

// y [tokens, rows] of up to kTokens tokens; a thread block of whole warps for every unit.
template <typename T, int kTokens>
__global__ void __launch_bounds__(kMostWarps<kTokens>* kLanes, 1)
    bitmask_kernel(BitmaskOf<T> w, const T* x, int tokens, cuda::Finish<T> finish, T* y) {
  extern __shared__ __align__(16) char shared[];
  const int64_t unit = blockIdx.x;
  const int warp = warp_of_block(), lane = lane_of_warp(), warps = blockDim.x / kLanes;
  auto* warps_own = reinterpret_cast<Warp<kTokens>*>(shared);
  auto* counts = reinterpret_cast<int*>(warps_own + warps);
  const Strip strip = strip_of(warp, warps, slabs_of(w.cols));
  const int count = count_bits(w, unit, strip);
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  int64_t first = w.starts[unit];
  for (int i = 0; i < warp; ++i) first += counts[i];

  Sums<kTokens> sums;
  multiply_strip(w, unit, strip, first, first + count, x, tokens, warps_own[warp], sums);

  __syncwarp();
  auto* to = reinterpret_cast<float*>(warps_own[warp].ring);
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float sum = sums.of[i][t];  // of four columns at once
#pragma unroll
      for (int step = kPer; step < kLanes; step *= 2) sum += __shfl_xor_sync(kAll, sum, step);
      if (lane < kPer) to[(first_row(lane) + i) * kTokens + t] = sum;
    }
  __syncthreads();
  finish_unit<T, kTokens>(w, unit, shared, warps, tokens, finish, y);
}

}  // namespace sparseprune::bitmask
