// In place of csrc/kernels/cuda/tensor_core.cuh: the copies, by what a copy under way is, and the
// product of a warp, by what its fragments hold.
#pragma once
#include <array>

#include "cuda_on_cpu.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune {

using SharedAddress = char*;
inline char* shared_address(const void* p) { return static_cast<char*>(const_cast<void*>(p)); }

inline void begin_copy(const cuda_on_cpu::Copy& copy) {
  using namespace cuda_on_cpu;
  if (self.arrival == Arrival::at_once) return carry_out({copy});
  self.open.push_back(copy);
}
inline void copy_async(char* to, const void* from, int bytes) { begin_copy({to, from, bytes, 16}); }
template <int kBytes>
void copy_async_few(char* to, const void* from) {
  begin_copy({to, from, kBytes, kBytes});
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
    from += sizeof bits;
    return uint32_t{bits};
  };
  const uint32_t lower = take(low, from_low);
  return lower | take(high, from_high) << 16;
}

// Lane l brings the address of row l % 8 of matrix l / 8 and gets, of every matrix, two elements.
inline void load_matrices(uint32_t (&to)[4], SharedAddress from) {
  const auto rows = cuda_on_cpu::exchanged(from);
  const mma::Place p = mma::loaded_place(cuda_on_cpu::self.lane, 0);
  for (int matrix = 0; matrix < 4; ++matrix)
    std::memcpy(&to[matrix], rows[static_cast<size_t>(8 * matrix + p.row)] + 2 * p.col, 4);
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

// A [16, 32] is 2:4: its values are an A of multiply_add, two of a row's four columns each.
template <typename T>
void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                         uint32_t places, T) {
  using namespace mma;
  const auto lanes =
      cuda_on_cpu::exchanged(std::array{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], places});
  float values[kM][kK] = {}, whole_b[kSparseK][kN] = {};
  int columns[kM][kK] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& registers = lanes[static_cast<size_t>(lane)];
    for (int i = 0; i < 2 * kARegs; ++i) {
      const Place at = a_place(lane, i);
      values[at.row][at.col] = element_of(registers, i);
    }
    for (int i = 0; i < 2 * kSparseBRegs; ++i) {
      const Place at = sparse_b_place(lane, i);
      whole_b[at.row][at.col] = element_of(registers, 2 * kARegs + i);
    }
    if (lane % 4 > 1) continue;  // not read by selector 0
    for (int j = 0; j < 8; ++j) {
      const Place group = metadata_place(lane, j);
      const uint32_t two = registers[8] >> (4 * j);
      if ((two & 3) >= (two >> 2 & 3)) std::abort();  // "ordered metadata"
      columns[group.row][group.col / 2] = group.col + static_cast<int>(two & 3);
      columns[group.row][group.col / 2 + 1] = group.col + static_cast<int>(two >> 2 & 3);
    }
  }
  for (int i = 0; i < kCRegs; ++i) {
    const Place at = c_place(cuda_on_cpu::self.lane, i);
    for (int k = 0; k < kK; ++k) c[i] += values[at.row][k] * whole_b[columns[at.row][k]][at.col];
  }
}

}  // namespace sparseprune
