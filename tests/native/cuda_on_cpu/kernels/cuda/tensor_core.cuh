// In place of csrc/kernels/cuda/tensor_core.cuh: the copies, by what a copy under way is.
#pragma once
#include "cuda_on_cpu.h"

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

}  // namespace sparseprune
