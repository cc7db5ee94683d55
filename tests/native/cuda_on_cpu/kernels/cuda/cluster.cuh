// In place of csrc/kernels/cuda/cluster.cuh.
#pragma once
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::cuda {

inline char* block_memory() { return cuda_on_cpu::self.block->memory; }
inline int cluster_rank() { return cuda_on_cpu::self.rank; }
inline int cluster_size() {
  return static_cast<int>(cuda_on_cpu::self.block->cluster.blocks.size());
}
inline void cluster_sync() { cuda_on_cpu::self.block->cluster.meeting.arrive_and_wait(); }
template <typename T>
T cluster_read(const T* own, int rank) {
  const auto place = reinterpret_cast<const char*>(own) - block_memory();
  const auto& other = cuda_on_cpu::self.block->cluster.blocks.at(static_cast<size_t>(rank));
  return *reinterpret_cast<const T*>(other->memory + place);
}

}  // namespace sparseprune::cuda
