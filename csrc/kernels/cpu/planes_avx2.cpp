// Kernels over planes for AVX2 and FMA: 8 floats a vector, masked edges.
#include <immintrin.h>

#include "kernels/cpu/planes.h"

namespace {

constexpr int kWidth = 8, kVectors = 8;
constexpr bool kManyRegisters = false;
using Vec = __m256;

// low where v < low, high where v > high, else v: the second operand comes back where one is NaN.
inline Vec limit(Vec v, Vec low, Vec high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }

// The larger; NaN where one is NaN: all bits set are a NaN.
inline Vec larger(Vec a, Vec b) {
  return _mm256_or_ps(_mm256_max_ps(a, b), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

// high where v > high, else v
inline Vec at_most(Vec v, Vec high) { return _mm256_min_ps(high, v); }

// 2^y = scale 2^rest, |rest| <= 1 / 2 / kRoots; infinity from 2^128 on, never below 2^-126. NaN is
// in rest.
constexpr int kRoots = 8;
struct Power {
  Vec scale, rest;
  explicit Power(Vec y) {
    const Vec roots = _mm256_setr_ps(1.f, 1.09050775f, 1.18920708f, 1.29683959f, 1.41421354f,
                                     1.54221082f, 1.68179286f, 1.8340081f);
    y = limit(y, _mm256_set1_ps(-126.f), _mm256_set1_ps(128.f));
    // What is added to 1.5 * 2^20 becomes a whole number of eighths, the root's number last.
    const Vec round = _mm256_set1_ps(1572864.f), eighths = y + round;
    rest = y - (eighths - round);
    const __m256i whole = _mm256_castps_si256(eighths);
    const __m256i octaves = _mm256_slli_epi32(_mm256_srai_epi32(whole, 3), 23);
    scale = _mm256_castsi256_ps(
        _mm256_add_epi32(octaves, _mm256_castps_si256(_mm256_permutevar8x32_ps(roots, whole))));
  }
};

inline Vec quotient(Vec a, Vec d) { return a / d; }

inline __m256i first(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// p[0..count), then lanes of rest; 0 <= count <= kWidth. Nothing else is touched.
inline Vec load_part(const float* p, int64_t count, Vec rest) {
  const __m256i live = first(count);
  return _mm256_blendv_ps(rest, _mm256_maskload_ps(p, live), _mm256_castsi256_ps(live));
}
inline void store_part(float* p, Vec v, int64_t count) { _mm256_maskstore_ps(p, first(count), v); }

// v, loaded once: compilers would rather load it again for each of two permutations.
inline Vec kept(Vec v) {
  asm("" : "+x"(v));
  return v;
}

// Lanes [0, count) of v, zeros behind.
inline Vec first_lanes(Vec v, int64_t count) {
  return _mm256_and_ps(v, _mm256_castsi256_ps(first(count)));
}

// The sum of all lanes.
inline float across(Vec v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// __builtin_prefetch(p, 1) fetches for reading where prefetchw has no flag of its own.
inline void prefetch_for_write(const float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }

// Every other lane of a from kA on, then every other lane of b from kB on.
template <int kA, int kB>
inline Vec every_other(Vec a, Vec b) {
  const __m256 pairs = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(kB + 2, kB, kA + 2, kA));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), _MM_SHUFFLE(3, 1, 2, 0)));
}

// The last lane of `before`, then all of v but its last.
inline Vec shifted_in(Vec v, Vec before) {
  const __m256i middle = _mm256_castps_si256(_mm256_permute2f128_ps(before, v, 0x21));
  return _mm256_castsi256_ps(_mm256_alignr_epi8(_mm256_castps_si256(v), middle, 12));
}

#include "kernels/cpu/planes_activations.inc"
#include "kernels/cpu/planes_body.inc"
#include "kernels/cpu/planes_depthwise.inc"
#include "kernels/cpu/planes_pool.inc"

// Lane lanes[i] of v in lane i.
inline Vec picked(Vec v, Ints lanes) { return _mm256_permutevar8x32_ps(v, (__m256i)lanes); }

template <int V>
using Stretch = Unaligned<V>;

#include "kernels/cpu/planes_attention.inc"
#include "kernels/cpu/planes_norm.inc"
#include "kernels/cpu/planes_pack.inc"
#include "kernels/cpu/planes_rotary.inc"
#include "kernels/cpu/planes_rows.inc"
#include "kernels/cpu/planes_shares.inc"

}  // namespace

namespace sparseprune {
extern const PlaneKernels planes_avx2;
const PlaneKernels planes_avx2 = {finish,        depthwise,   split,     pool,   adaptive,
                                  nearest,       mean,        means,     scale,  multiply,
                                  pack_streams,  pack_scaled, pack_runs, spread, normalise,
                                  normalise_row, rotate,      attend<>};
}  // namespace sparseprune
