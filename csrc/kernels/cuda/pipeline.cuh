// Stages go through shared memory, kStages - 1 of them under way while one is multiplied.
#pragma once
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::cuda {

// loader.load(stage, ahead, to) begins the copies of a stage; what loader.ahead(stage) looks up for
// it is asked for a stage earlier, so that no copy waits. sums.step(from) multiplies one.
template <int kStages, int kStageBytes, typename Loader, typename Multiply>
__device__ void pipeline(const Loader& loader, int stages, char* shared, Multiply& sums) {
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < stages) loader.load(s, loader.ahead(s), shared + s * kStageBytes);
    commit_copies();
  }
  auto ahead = loader.ahead(kStages - 1);
  for (int s = 0; s < stages; ++s) {
    wait_copies<kStages - 2>();
    __syncthreads();  // stage s has arrived, and all are done with the one before it
    const int next = s + kStages - 1;
    if (next < stages) loader.load(next, ahead, shared + next % kStages * kStageBytes);
    commit_copies();
    ahead = loader.ahead(next + 1);
    sums.step(shared + s % kStages * kStageBytes);
  }
  wait_copies<0>();
  __syncthreads();
}

}  // namespace sparseprune::cuda
