// Thread blocks that work together: a cluster, whose blocks read each other's shared memory. Before
// sm_90 a cluster is one thread block.
#pragma once
#include <bit>

#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::cuda {

// The dynamic shared memory of a thread block.
__device__ inline char* block_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

#if __CUDA_ARCH__ >= 900

__device__ inline int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline int cluster_size() {
  int size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// All threads of the cluster are here, and see what the others wrote.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// What lies at the same place in the shared memory of block `rank`.
template <typename T>
__device__ T cluster_read(const T* own, int rank) {
  if (rank == cluster_rank()) return *own;  // the shorter way
  uint32_t at, bits;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(own)), "r"(rank));
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(bits) : "r"(at) : "memory");
  return std::bit_cast<T>(bits);
}

#else

__device__ inline int cluster_rank() { return 0; }
__device__ inline int cluster_size() { return 1; }
__device__ inline void cluster_sync() { __syncthreads(); }
template <typename T>
__device__ T cluster_read(const T* own, int) {
  return *own;
}

#endif

}  // namespace sparseprune::cuda
