// In place of csrc/kernels/cuda/tensor_core.cuh: the copies, by what a copy under way is, and the
// product of a warp, by what its fragments hold.
#pragma once
#include <array>

#include "cuda_on_cpu.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune {

using SharedAddress = void*;
inline void* shared_address(const void* p) { return const_cast<void*>(p); }

inline void copy_async(void* to, const void* from, int bytes) {
  using namespace cuda_on_cpu;
  const Copy copy{to, from, bytes};
  if (self.arrival == Arrival::at_once) return carry_out({copy});
  self.open.push_back(copy);
}
inline void commit_copies() {
  cuda_on_cpu::self.groups.push_back(std::move(cuda_on_cpu::self.open));
  cuda_on_cpu::self.open.clear();
}
template <int kPending>
inline void wait_copies() {
  for (auto& groups = cuda_on_cpu::self.groups; groups.size() > kPending; groups.pop_front())
    cuda_on_cpu::carry_out(groups.front());
}

inline uint32_t take_pair(uint32_t low, SharedAddress& from_low, uint32_t high,
                          SharedAddress& from_high) {
  const auto take = [](uint32_t kept, SharedAddress& from) {
    uint16_t bits = 0;
    if (!kept) return uint32_t{bits};
    std::memcpy(&bits, from, sizeof bits);
    from = static_cast<char*>(from) + sizeof bits;
    return uint32_t{bits};
  };
  const uint32_t lower = take(low, from_low);
  return lower | take(high, from_high) << 16;
}

// Element i of a lane's registers.
template <size_t kRegs>
float element_of(const std::array<uint32_t, kRegs>& registers, int i) {
  const uint32_t two = registers[static_cast<size_t>(i / 2)];
  return from_upper_half(static_cast<uint16_t>(i % 2 ? two >> 16 : two));
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  using namespace mma;
  const auto lanes = cuda_on_cpu::exchanged(std::array{a[0], a[1], a[2], a[3], b0, b1});
  float whole_a[kM][kK] = {}, whole_b[kK][kN] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& registers = lanes[static_cast<size_t>(lane)];
    for (int i = 0; i < 2 * kARegs; ++i) {
      const Place at = a_place(lane, i);
      whole_a[at.row][at.col] = element_of(registers, i);
    }
    for (int i = 0; i < 2 * kBRegs; ++i) {
      const Place at = b_place(lane, i);
      whole_b[at.row][at.col] = element_of(registers, 2 * kARegs + i);
    }
  }
  for (int i = 0; i < kCRegs; ++i) {
    const Place at = c_place(cuda_on_cpu::self.lane, i);
    for (int k = 0; k < kK; ++k) c[i] += whole_a[at.row][k] * whole_b[k][at.col];
  }
}

}  // namespace sparseprune
