// csr kernels in portable C++: what every CPU runs, and what the others are compared with.
#include "kernels/cpu/csr.h"

namespace {

constexpr int kWidth = 4, kVectors = 4;  // the vectors of the base instruction set
typedef float Vec __attribute__((vector_size(4 * kWidth), may_alias));

// low where v < low, high where v > high, else v.
inline Vec limit(Vec v, Vec low, Vec high) {
  const Vec raised = v < low ? low : v;
  return raised > high ? high : raised;
}

// Four floats, and one of them in all lanes.
inline Vec load_four(const float* p) {
  Vec four;
  __builtin_memcpy(&four, p, sizeof four);
  return four;
}
template <int k>
inline Vec lane(Vec four) {
  return four[k] - Vec{};
}

inline void prefetch_for_write(const float* p) { __builtin_prefetch(p, 1); }

// sum[t] = sum_i values[i] * x[t * x_stride + columns[i]]
template <int kTokens>
inline void dot(const float* values, const uint16_t* columns, int64_t count, const float* x,
                int64_t x_stride, float* sum) {
  for (int t = 0; t < kTokens; ++t) {
    float even = 0.f, odd = 0.f;  // two chains, for the latency of an addition
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      even += values[i] * x[t * x_stride + columns[i]];
      odd += values[i + 1] * x[t * x_stride + columns[i + 1]];
    }
    if (i < count) even += values[i] * x[t * x_stride + columns[i]];
    sum[t] = even + odd;
  }
}

#include "kernels/cpu/csr_body.inc"

}  // namespace

namespace sparseprune {
extern const CsrKernels csr_scalar;
const CsrKernels csr_scalar = {kVectors, gather<ByDot>, gather<ByDot>, rows, groups, sorted};
}  // namespace sparseprune
