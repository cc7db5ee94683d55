// Dense kernels in portable C++: what every CPU runs, and what the others are compared with.
#include "kernels/cpu/dense.h"

namespace {

constexpr int kWidth = 4, kVectors = 4, kSums = 8;  // the vectors of the base instruction set

// The sum of all lanes.
template <typename Vec>
inline float across(Vec v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}

#include "kernels/cpu/dense_body.inc"

}  // namespace

namespace sparseprune {
extern const DenseKernels dense_scalar;
const DenseKernels dense_scalar = {dots, panels};
}  // namespace sparseprune
