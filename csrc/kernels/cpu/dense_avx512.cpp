// Dense kernels for AVX-512: 16 floats a vector, 32 registers.
#include <immintrin.h>

#include "kernels/cpu/dense.h"

namespace {

constexpr int kWidth = 16, kVectors = 4, kSums = 16;  // kSums: vectors of sums in registers

// The sum of all lanes.
inline float across(__m512 v) { return _mm512_reduce_add_ps(v); }

#include "kernels/cpu/dense_body.inc"

}  // namespace

namespace sparseprune {
extern const DenseKernels dense_avx512;
const DenseKernels dense_avx512 = {dots, panels};
}  // namespace sparseprune
