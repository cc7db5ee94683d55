// bitmask kernels for AVX-512 (F, BW, VL, DQ): 16 rows a vector, a whole unit at a time.
#include <immintrin.h>

#include "kernels/cpu/bitmask.h"

namespace {

using sparseprune::Bitmask;
using sparseprune::Clamp;
using W = Bitmask;
constexpr int kTogether = 4;  // tokens
using Vec = __m512;

constexpr int kWidth = 16;
constexpr int vectors(int) { return 4; }

struct Weights {
  __m512 values;
  __mmask16 kept;
};

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }

// Reads no float past those that the mask counts. A mask from memory spares the port that expands.
inline Weights expand(const uint8_t* mask, const float* values) {
  __mmask16 kept;
  __builtin_memcpy(&kept, mask, sizeof kept);
  return {_mm512_maskz_expandloadu_ps(kept, values), kept};
}

// Masked: a pruned weight adds nothing, even where x is NaN.
inline Vec add_product(Vec sum, const Weights& w, Vec x) {
  return _mm512_mask3_fmadd_ps(w.values, x, sum, w.kept);
}

#include "kernels/cpu/bitmask_vectors.inc"
//
#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const BitmaskKernels::Linear bitmask_avx512vpopcntdq;
extern const BitmaskKernels bitmask_avx512;
const BitmaskKernels bitmask_avx512 = {linear, bitmask_avx512vpopcntdq};
}  // namespace sparseprune
