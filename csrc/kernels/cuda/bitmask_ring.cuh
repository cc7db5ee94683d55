// How the values of a strip reach a warp: through its ring in shared memory, some chunks ahead.
#pragma once
#include "kernels/cuda/bitmask_index.h"
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::bitmask {

__device__ inline int lane_of_warp() { return threadIdx.x % kLanes; }
__device__ inline int warp_of_block() { return threadIdx.x / kLanes; }

// At most the `pending` latest chunks are still under way; one of the numbers of waited_for().
__device__ inline void wait_but_for(uint32_t pending) {
  switch (pending) {
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

class Ring {
 public:
  // from: the first value, rounded down to a whole copy; bytes: from there to the last one's end.
  __device__ Ring(char* ring, const char* from, uint32_t bytes)
      : ring_(ring), from_(from), bytes_(bytes) {}

  // All values in bytes [begin, end) are there; what lies before `begin` may be overwritten.
  __device__ void need(uint32_t begin, uint32_t end) {
    if (chunks_to(end) <= arrived_) return;
    __syncwarp();  // all lanes are done with what lies before
    const uint32_t until = ask_until(bytes_, begin);
#pragma unroll 1
    for (; asked_ < until; ++asked_) copy(asked_);
    const uint32_t pending = waited_for(asked_ - chunks_to(end));
    wait_but_for(pending);
    arrived_ = asked_ - pending;
    __syncwarp();
  }
  template <typename T>
  __device__ const T* at(uint32_t byte) const {
    return reinterpret_cast<const T*>(ring_ + place_of(byte));
  }
  __device__ SharedAddress address(uint32_t byte) const {
    return shared_address(ring_ + place_of(byte));
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
  uint32_t bytes_, asked_ = 0, arrived_ = 0;  // chunks
};

}  // namespace sparseprune::bitmask
