// bitmask kernels for AVX2 and FMA: 8 rows a vector, expanded by a table with a row per byte.
#include <immintrin.h>

#include "kernels/cpu/bitmask.h"

namespace {

using sparseprune::Bitmask;
using sparseprune::Clamp;
using W = Bitmask;
constexpr int kTogether = 4;  // tokens
using Vec = __m256;

constexpr int kWidth = 8;
constexpr int vectors(int tokens) { return tokens == 1 ? 8 : tokens == 2 ? 4 : 2; }

struct Weights {
  __m256 values, kept;
};

// Lane i of a byte's row: below 0 where bit i is set, and then the place of its value in the low
// three bits; else 7, a lane that is 0 whenever a bit is missing.
struct Places {
  alignas(8) int8_t of[256][8];
};
constexpr Places kPlaces = [] {
  Places p{};
  for (int byte = 0; byte < 256; ++byte)
    for (int lane = 0, next = 0; lane < 8; ++lane)
      p.of[byte][lane] = static_cast<int8_t>(byte >> lane & 1 ? next++ - 128 : 7);
  return p;
}();

// kFirst + 8 - n: n times -1, then zeros.
constexpr int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }

// Reads no float past those that the mask counts.
inline Weights expand(const uint8_t* mask, const float* values) {
  const int n = __builtin_popcount(*mask);
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - n));
  const __m256i places =
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[*mask])));
  return {_mm256_permutevar8x32_ps(_mm256_maskload_ps(values, first), places),
          _mm256_castsi256_ps(_mm256_srai_epi32(places, 31))};
}

// Masked: a pruned weight adds nothing, even where x is NaN.
inline Vec add_product(Vec sum, const Weights& w, Vec x) {
  return _mm256_fmadd_ps(w.values, _mm256_and_ps(w.kept, x), sum);
}

#include "kernels/cpu/bitmask_vectors.inc"
//
#include "kernels/cpu/units_body.inc"

}  // namespace

namespace sparseprune {
extern const BitmaskKernels bitmask_avx2;
const BitmaskKernels bitmask_avx2 = {linear, nullptr};
}  // namespace sparseprune
