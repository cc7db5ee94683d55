// Where the warps of a thread block share k of one tile: their sums added up.
#pragma once

namespace sparseprune {

// The parts of k in their order, through `shared` (a float per thread and sum), by the threads of
// the first part; true for those.
template <int kThreads, int kParts, int kMs, int kNs, int kRegs>
__device__ bool add_parts(float (&sums)[kMs][kNs][kRegs], float* shared) {
  constexpr int kSums = kMs * kNs * kRegs, kPart = kThreads / kParts;  // threads of a part
  const auto sum = [&](int i) -> float& {
    return sums[i / (kNs * kRegs)][i / kRegs % kNs][i % kRegs];
  };
  float* own = shared + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kSums; ++i) own[i * kThreads] = sum(i);
  __syncthreads();
  if (threadIdx.x >= kPart) return false;
#pragma unroll
  for (int i = 0; i < kSums; ++i)
#pragma unroll
    for (int part = 1; part < kParts; ++part) sum(i) += own[i * kThreads + part * kPart];
  return true;
}

}  // namespace sparseprune
