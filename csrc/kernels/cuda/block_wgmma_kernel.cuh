// The kernel of 64 x 64 blocks for wgmma: who copies, who multiplies, who writes out.
#pragma once
#include "kernels/cuda/block_wgmma_index.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/io.cuh"

namespace sparseprune::wgmma {

// W as the kernel sees it: its values by a tensor map, as [blocks * 64, 64].
struct Blocks {
  const int32_t *columns, *starts;
  int block_rows, token_tiles;

  __device__ int tiles() const { return block_rows * token_tiles; }
};

// What of x the columns of a block read, for the tokens from `first` on.
struct TokenWindow {
  TensorMap map;

  struct From {
    int first;
  };
  __device__ From from(int first, int) const { return {first}; }
  __device__ void load(void* to, Barrier* full, const From& from, int block_column) const {
    load_rows(to, map, full, block_column * kSide, from.first);
  }
};

// The same for output pixels: 64 channels of one tap.
struct PixelWindow {
  TensorMap map;
  int out_h, out_w, channels, rows_per_group;  // channels of a group
  int kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  struct From {
    int channel, col, row, image;
  };
  __device__ From from(int first, int block_row) const {
    const Pixel p = pixel_of(first, out_h, out_w);
    return {block_row * kSide / rows_per_group * channels, p.col * stride_w - padding_w,
            p.row * stride_h - padding_h, p.image};
  }
  __device__ void load(void* to, Barrier* full, const From& from, int block_column) const {
    const int column = block_column * kSide, tap = column / channels;
    load_pixels(to, map, full, from.channel + column % channels, from.col, from.row, from.image,
                tap % kernel_w * dilation_w, tap / kernel_w * dilation_h);
  }
};

inline PixelWindow pixel_reads(const TensorMap& map, const Conv2dShape& s) {
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  return {map,
          narrow(s.out_height()),
          narrow(s.out_width()),
          narrow(s.channels / s.groups),
          narrow(s.rows / s.groups),
          narrow(s.kernel_w),
          narrow(s.stride_h),
          narrow(s.stride_w),
          narrow(s.padding_h),
          narrow(s.padding_w),
          narrow(s.dilation_h),
          narrow(s.dilation_w)};
}

// The stages of a thread block, and their barriers; whose turn it is to multiply.
template <typename Tile>
struct Ring {
  char* stages;

  __device__ char* w(int stage) const { return stages + stage * Tile::kStageBytes; }
  __device__ char* x(int stage) const { return w(stage) + Tile::kWBytes; }
  __device__ Barrier* full(int stage) const { return barriers() + stage; }
  __device__ Barrier* empty(int stage) const { return barriers() + Tile::kStages + stage; }
  __device__ Barrier* turn(int taker) const { return barriers() + 2 * Tile::kStages + taker; }
  __device__ void begin() const {
    for (int taker = 0; taker < kTakers; ++taker) begin_barrier(turn(taker), kWarps);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      begin_barrier(full(stage), 1);
      begin_barrier(empty(stage), kWarps);
    }
    show_barriers();
  }

 private:
  __device__ Barrier* barriers() const {
    return reinterpret_cast<Barrier*>(stages + Tile::kStages * Tile::kStageBytes);
  }
};

// One thread copies all blocks of all tiles of its thread block, as far ahead as the ring allows.
template <typename Tile, typename Window>
__device__ void copy_tiles(const Ring<Tile>& ring, const Blocks& w, const TensorMap& values,
                           const Window& window) {
  int copy = 0;
  for (int tile = blockIdx.x; tile < w.tiles(); tile += gridDim.x) {
    const Place place = place_of<Tile>(tile, w.block_rows);
    const auto from = window.from(place.token, place.block_row);
    const int end = w.starts[place.block_row + 1];
    for (int block = w.starts[place.block_row]; block < end; ++block, ++copy) {
      const Slot slot = slot_of(copy, Tile::kStages);
      const int column = w.columns[block];
      wait_for(ring.empty(slot.stage), slot.parity ^ 1);
      arrive_expecting(ring.full(slot.stage), Tile::kStageBytes);
      load_rows(ring.w(slot.stage), values, ring.full(slot.stage), 0, block * kSide);
      window.load(ring.x(slot.stage), ring.full(slot.stage), from, column);
    }
  }
}

// The sums of one tile, by a warpgroup.
template <typename T, typename Tile>
class Sums {
 public:
  // The products of `count` stages from copy `first` on, then the turn is that of `next`.
  __device__ void multiply(const Ring<Tile>& ring, int first, int count, int next) {
#pragma unroll
    for (auto& part : sums_)
#pragma unroll
      for (float& sum : part) sum = 0.f;
    for (int i = 0; i < count; ++i) {
      const Slot slot = slot_of(first + i, Tile::kStages);
      wait_for(ring.full(slot.stage), slot.parity);
      step(ring, slot.stage);
      wait_products<1>();
      if (i > 0) release(ring, first + i - 1);
    }
    arrive_as_warp(ring.turn(next));
    wait_products<0>();
    hold(sums_);
    if (count > 0) release(ring, first + count - 1);
  }

  // All of them to a Store (io.cuh). A thread has sums of two rows and of pairs of tokens, and
  // gets pairs of rows from its neighbours.
  template <typename Store>
  __device__ void finish(const Store& store) const {
    const int thread = threadIdx.x % kWarpgroup, lane = thread % 32;
    const int own = sum_place(thread, 0).row, pair = own - lane / 4 + lane % 4 * 2;
    const float bias[2] = {store.bias(own), store.bias(own + 8)};
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part)
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {  // eight tokens
        const float* sums = sums_[part] + i;
        const uint32_t upper = transposed(store.finished(sums[0], sums[1], bias[0]));
        const uint32_t lower = transposed(store.finished(sums[2], sums[3], bias[1]));
        const auto to = store.token(part * kN + i * 2 + lane / 4);
        store.put(to, pair, upper);
        store.put(to, pair + 8, lower);
      }
  }

 private:
  __device__ void step(const Ring<Tile>& ring, int stage) {
    const uint64_t w = descriptor(operand_address(ring.w(stage)));
    const uint64_t x = descriptor(operand_address(ring.x(stage)));
    hold(sums_);
    begin_products();
#pragma unroll
    for (int k = 0; k < kSide; k += kK)
#pragma unroll
      for (int part = 0; part < Tile::kParts; ++part)
        multiply_add(sums_[part], further(w, k), further(x, k) + (part * kN * kRowBytes >> 4), T{});
    commit_products();
    hold(sums_);
  }

  __device__ static void release(const Ring<Tile>& ring, int copy) {
    arrive_as_warp(ring.empty(slot_of(copy, Tile::kStages).stage));
  }
  // When all of its lanes are here.
  __device__ static void arrive_as_warp(Barrier* b) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(b);
  }

  float sums_[Tile::kParts][kSums];
};

// Every second tile of a thread block. In turns, for a parity tells a stage's rounds apart only
// from one to the next: who waits for a stage must know that the round before it is over.
template <typename T, typename Tile, typename Output>
__device__ void multiply_tiles(const Ring<Tile>& ring, const Blocks& w, const Output& out,
                               const Finish<T>& finish, int taker) {
  int copy = 0, turn = 0;
  for (int tile = blockIdx.x; tile < w.tiles(); tile += gridDim.x, ++turn) {
    const Place place = place_of<Tile>(tile, w.block_rows);
    const int count = w.starts[place.block_row + 1] - w.starts[place.block_row];
    if (turn % kTakers == taker) {
      if (turn > 0) wait_for(ring.turn(taker), turn_parity(turn));
      Sums<T, Tile> sums;
      sums.multiply(ring, copy, count, (taker + 1) % kTakers);
      sums.finish(Store<T, Output>(out, finish, place.token, place.block_row * kSide, out.rows));
    }
    copy += count;
  }
}

// y = clamp(W x + bias).
template <typename T, typename Tile, typename Window, typename Output>
__global__ void __launch_bounds__(kThreads, 1)
    block_wgmma_kernel(const __grid_constant__ TensorMap values,
                       const __grid_constant__ Window window, Blocks w, Output out,
                       Finish<T> finish) {
  const Ring<Tile> ring{aligned_memory<kAtomBytes>()};
  if (threadIdx.x == 0) ring.begin();
  __syncthreads();
  const int taker = threadIdx.x / kWarpgroup;
  if (taker < kTakers)
    multiply_tiles(ring, w, out, finish, taker);
  else if (threadIdx.x % 32 == 0)
    copy_tiles(ring, w, values, window);
}

}  // namespace sparseprune::wgmma
