// In place of csrc/kernels/cuda/hopper.cuh: barriers, copies of windows and products of warpgroups,
// by the words of the PTX ISA. Products run when they must be over, and not before, where copies
// arrive when they are waited for: a stage that is freed too early is then read too late.
#pragma once
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_window.h"

namespace cuda_on_cpu {

// Calls change(phases) of a barrier while no other thread does, and ends its phase if that is due.
template <typename Change>
void with_phases(const uint64_t* b, const Change& change) {
  const std::lock_guard<std::mutex> guard(self.block->held);
  change(self.block->phases[b]);
  self.block->phases[b].end_if_due();
  self.block->changed.notify_all();
}

}  // namespace cuda_on_cpu

namespace sparseprune {

using TensorMap = cuda::TensorWindow;

template <int kAlignment>
char* aligned_memory() {
  static_assert(alignof(cuda_on_cpu::Block) >= kAlignment);
  return cuda_on_cpu::self.block->memory;
}
inline uint32_t operand_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - cuda_on_cpu::self.block->memory);
}

using Barrier = uint64_t;

inline void begin_barrier(Barrier* b, int arrivals) {
  cuda_on_cpu::with_phases(b, [=](auto& p) { p.arrivals = p.missing = arrivals; });
}
inline void show_barriers() {}
inline void arrive(Barrier* b) {
  cuda_on_cpu::with_phases(b, [](auto& p) { --p.missing; });
}
inline void arrive_expecting(Barrier* b, int bytes) {
  cuda_on_cpu::with_phases(b, [=](auto& p) { --p.missing, p.bytes += bytes; });
}
inline void wait_for(Barrier* b, uint32_t parity) {
  cuda_on_cpu::Block& block = *cuda_on_cpu::self.block;
  std::unique_lock<std::mutex> lock(block.held);
  cuda_on_cpu::Phases& p = block.phases.at(b);
  for (;;) {
    for (const auto& copy : p.copies) copy();
    p.copies.clear();
    p.end_if_due();
    if (p.phase != parity) break;
    if (block.changed.wait_for(lock, std::chrono::seconds(60)) == std::cv_status::no_timeout)
      continue;
    std::fprintf(stderr, "a barrier's phase does not end\n");
    std::abort();
  }
  lock.unlock();
  block.changed.notify_all();
}

namespace cuda_on_cpu_copies {

// Where byte `offset` of a window lies that begins at `to`: of its address in shared memory, the
// bits of the row of 128 bytes in eight change those of the piece of 16 bytes.
inline char* swizzled(void* to, int offset) {
  char* memory = cuda_on_cpu::self.block->memory;
  uint32_t address = operand_address(to) + static_cast<uint32_t>(offset);
  address ^= (address >> 7 & 7) << 4;
  return memory + address;
}

inline void put(void* to, int row, int i, uint16_t bits) {
  std::memcpy(swizzled(to, row * 128 + i * 2), &bits, sizeof bits);
}

// Element [i0, i1, i2, i3] of the tensor, innermost first; 0 outside of it.
inline uint16_t element(const TensorMap& map, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
  const int64_t at[4] = {i0, i1, i2, i3};
  int64_t offset = 0;
  for (int d = 0; d < map.rank; ++d) {
    if (at[d] < 0 || at[d] >= map.sizes[d]) return 0;
    offset += at[d] * map.strides[d];
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const uint16_t*>(map.base) + offset, sizeof bits);
  return bits;
}

// Carried out now or when it is waited for, while no other thread is at the barriers.
inline void begin(Barrier* b, int bytes, const std::function<void()>& copy) {
  using namespace cuda_on_cpu;
  with_phases(b, [&](Phases& p) {
    const auto whole = [copy, bytes, &p] { copy(), p.bytes -= bytes; };
    if (self.arrival == Arrival::at_once) return whole();
    p.copies.push_back(whole);
  });
}

}  // namespace cuda_on_cpu_copies

inline void load_rows(void* to, const TensorMap& map, Barrier* b, int col, int row) {
  using namespace cuda_on_cpu_copies;
  begin(b, map.box[0] * map.box[1] * 2, [=] {
    for (int r = 0; r < map.box[1]; ++r)
      for (int i = 0; i < map.box[0]; ++i) put(to, r, i, element(map, col + i, row + r, 0, 0));
  });
}

// "Im2col mode": pixels of the bounding box, columns first, then rows, then images.
inline void load_pixels(void* to, const TensorMap& map, Barrier* b, int channel, int col, int row,
                        int image, int right, int down) {
  using namespace cuda_on_cpu_copies;
  begin(b, map.box[0] * map.box[1] * 2, [=] {
    int64_t x = col, y = row, n = image;
    for (int pixel = 0; pixel < map.box[1]; ++pixel) {
      for (int i = 0; i < map.box[0]; ++i)
        put(to, pixel, i, element(map, channel + i, x + right, y + down, n));
      x += map.steps[0];
      if (x > map.sizes[1] - 1 + map.upper[0]) x = map.lower[0], y += map.steps[1];
      if (y > map.sizes[2] - 1 + map.upper[1]) y = map.lower[1], ++n;
    }
  });
}

// All of a warp come to each of these (".sync.aligned").
inline void begin_products() {
  cuda_on_cpu::self.products.emplace_back();
  cuda_on_cpu::self.warp->meeting.arrive_and_wait();
}
inline void commit_products() { cuda_on_cpu::self.warp->meeting.arrive_and_wait(); }
template <int kPending>
void wait_products() {
  for (auto& groups = cuda_on_cpu::self.products; groups.size() > kPending; groups.pop_front())
    for (const auto& product : groups.front()) product();
  cuda_on_cpu::self.warp->meeting.arrive_and_wait();
}
template <int kParts, int kSums>
void hold(float (&)[kParts][kSums]) {}

namespace cuda_on_cpu_products {

// Element (row, k) of an operand, by "Shared Memory Matrix Layout" and "Matrix Descriptor Format":
// rows of 128 bytes in groups of eight, swizzled by the address.
inline float element(uint64_t descriptor, int row, int k) {
  const auto bits = [&](int at) { return static_cast<uint32_t>(descriptor >> at & 0x3fff) << 4; };
  if (descriptor >> 62 != 1) std::abort();  // not the swizzle of 128 bytes
  uint32_t address = bits(0) + static_cast<uint32_t>(row / 8) * bits(32) +
                     static_cast<uint32_t>(row % 8) * 128 + static_cast<uint32_t>(k) * 2;
  address ^= (address >> 7 & 7) << 4;
  uint16_t element;
  std::memcpy(&element, cuda_on_cpu::self.block->memory + address, sizeof element);
  return from_upper_half(element);
}

}  // namespace cuda_on_cpu_products

// "Matrix fragments for wgmma.mma_async.m64nNk16": the sums of a thread.
template <typename T>
void multiply_add(float (&c)[64], uint64_t a, uint64_t b, T) {
  using namespace cuda_on_cpu;
  const int thread = static_cast<int>(threadIdx.x % 128), warp = thread / 32, lane = thread % 32;
  float* sums = c;
  const auto product = [=] {
    for (int i = 0; i < 64; ++i) {
      const int row = warp * 16 + lane / 4 + (i % 4 >= 2 ? 8 : 0);
      const int col = i / 4 * 8 + lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k)
        sums[i] +=
            cuda_on_cpu_products::element(a, row, k) * cuda_on_cpu_products::element(b, col, k);
    }
  };
  if (self.arrival == Arrival::at_once) return product();
  self.products.back().push_back(product);
}

inline uint32_t transposed(uint32_t two) {
  const auto lanes = cuda_on_cpu::exchanged(two);
  const int lane = cuda_on_cpu::self.lane;
  const auto element = [&](int row, int col) {
    return lanes[static_cast<size_t>(row * 4 + col / 2)] >> (col % 2 * 16) & 0xffff;
  };
  const int row = lane / 4, col = lane % 4 * 2;
  return element(col, row) | element(col + 1, row) << 16;
}

}  // namespace sparseprune
