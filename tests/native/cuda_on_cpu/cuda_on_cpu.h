// Enough of CUDA for device code to run on the CPU: a thread block is as many threads of the
// system, a cluster several thread blocks at once, a warp instruction a meeting of 32 threads.
// Copies into shared memory arrive at once or only when they are waited for, whichever is asked
// for. Races are what a thread sanitizer would see.
#pragma once
#include <algorithm>
#include <barrier>
#include <bit>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

using std::isfinite;
using std::max;
using std::min;

struct uint2 {
  uint32_t x, y;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// 16-bit elements: the upper half of a float is enough of a stand-in for both.
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline uint16_t upper_half(float v) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16);
}
inline float from_upper_half(uint16_t v) { return std::bit_cast<float>(uint32_t{v} << 16); }
inline __half __float2half_rn(float v) { return {upper_half(v)}; }
inline float __half2float(__half v) { return from_upper_half(v.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {upper_half(v)}; }
inline float __bfloat162float(__nv_bfloat16 v) { return from_upper_half(v.bits); }

namespace cuda_on_cpu {

constexpr int kLanes = 32;
enum class Arrival { at_once, when_waited_for };

struct Index {
  unsigned x = 0;
};

// What 32 threads share: a slot for what each lane brings.
struct Warp {
  static constexpr size_t kSlotBytes = 48;
  std::barrier<> meeting{kLanes};
  alignas(16) char slots[kLanes][kSlotBytes] = {};
};

// A barrier in shared memory, by the words of the PTX ISA ("mbarrier"): a phase ends when all
// arrivals and all announced bytes are there.
struct Phases {
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  std::vector<std::function<void()>> copies;  // that arrive only when they are waited for

  void end_if_due() {
    if (missing || bytes) return;
    missing = arrivals, phase ^= 1;
  }
};

// What the threads of a block share, and those of all blocks of its cluster.
struct Cluster;
struct Block {
  explicit Block(Cluster& of, unsigned threads)
      : cluster(of), meeting(static_cast<std::ptrdiff_t>(threads)) {}
  Cluster& cluster;
  std::barrier<> meeting;
  alignas(1024) char memory[1 << 18];
  std::mutex held;
  std::condition_variable changed;
  std::map<const void*, Phases> phases;
};
struct Cluster {
  Cluster(unsigned blocks, unsigned threads) : meeting(std::ptrdiff_t{blocks} * threads) {
    for (unsigned b = 0; b < blocks; ++b)
      this->blocks.push_back(std::make_unique<Block>(*this, threads));
  }
  std::barrier<> meeting;
  std::vector<std::unique_ptr<Block>> blocks;
};

struct Copy {
  void* to;
  const void* from;
  int bytes, room;  // zeros from `bytes` on
};

// What a thread has of its own.
struct Thread {
  int lane = 0, rank = 0;  // in its warp; of its block in the cluster
  Warp* warp = nullptr;
  Block* block = nullptr;
  Arrival arrival = Arrival::at_once;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::deque<std::vector<std::function<void()>>> products;  // groups of them, the latest open
};
inline thread_local Thread self;

inline void carry_out(const std::vector<Copy>& copies) {
  for (const Copy& c : copies) {
    std::memset(c.to, 0, static_cast<size_t>(c.room));
    if (c.bytes) std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
  }
}

// What every lane of the warp brings, to every lane.
template <typename T>
std::vector<T> exchanged(T mine) {
  static_assert(sizeof(T) <= Warp::kSlotBytes);
  std::memcpy(self.warp->slots[self.lane], &mine, sizeof mine);
  self.warp->meeting.arrive_and_wait();
  std::vector<T> all(kLanes);
  for (int lane = 0; lane < kLanes; ++lane)
    std::memcpy(&all[static_cast<size_t>(lane)], self.warp->slots[lane], sizeof mine);
  self.warp->meeting.arrive_and_wait();
  return all;
}

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncwarp() { cuda_on_cpu::self.warp->meeting.arrive_and_wait(); }
inline void __syncthreads() { cuda_on_cpu::self.block->meeting.arrive_and_wait(); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __popcll(uint64_t v) { return std::popcount(v); }
template <typename T>
T __shfl_sync(uint32_t, T v, int from) {
  return cuda_on_cpu::exchanged(v).at(static_cast<size_t>(from));
}
template <typename T>
T __shfl_xor_sync(uint32_t, T v, int mask) {
  return cuda_on_cpu::exchanged(v).at(static_cast<size_t>(cuda_on_cpu::self.lane ^ mask));
}
template <typename T>
T __shfl_up_sync(uint32_t, T v, int by) {
  const int from = cuda_on_cpu::self.lane - by;
  const std::vector<T> all = cuda_on_cpu::exchanged(v);
  return from < 0 ? v : all.at(static_cast<size_t>(from));
}
inline int __reduce_add_sync(uint32_t, int v) {
  int sum = 0;
  for (const int each : cuda_on_cpu::exchanged(v)) sum += each;
  return sum;
}
inline uint32_t __ballot_sync(uint32_t, bool v) {
  uint32_t bits = 0;
  const std::vector<int> all = cuda_on_cpu::exchanged(static_cast<int>(v));
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane)
    bits |= static_cast<uint32_t>(all[static_cast<size_t>(lane)]) << lane;
  return bits;
}

namespace cuda_on_cpu {

// kernel() once per thread of every thread block: the blocks of a cluster at once, the clusters one
// after the other.
template <typename Kernel>
void launch(unsigned blocks, unsigned threads, Arrival arrival, const Kernel& kernel,
            unsigned cluster = 1) {
  for (unsigned first = 0; first < blocks; first += cluster) {
    Cluster together(cluster, threads);
    std::vector<std::unique_ptr<Warp>> warps;
    for (unsigned w = 0; w < cluster * threads / kLanes; ++w)
      warps.push_back(std::make_unique<Warp>());
    std::vector<std::thread> running;
    for (unsigned i = 0; i < cluster * threads; ++i)
      running.emplace_back([&, i] {
        const unsigned rank = i / threads, t = i % threads;
        threadIdx.x = t, blockIdx.x = first + rank, blockDim.x = threads, gridDim.x = blocks;
        self.lane = static_cast<int>(t % kLanes), self.warp = warps[i / kLanes].get();
        self.rank = static_cast<int>(rank), self.block = together.blocks[rank].get();
        self.arrival = arrival;
        kernel();
      });
    for (std::thread& thread : running) thread.join();
  }
}

}  // namespace cuda_on_cpu
