// Kernels over planes for AVX-512: 16 floats a vector, masked edges.
#include <immintrin.h>

#include "kernels/cpu/planes.h"

namespace {

constexpr int kWidth = 16, kVectors = 8;
constexpr bool kManyRegisters = true;
using Vec = __m512;

// low where v < low, high where v > high, else v: the second operand comes back where one is NaN.
inline Vec limit(Vec v, Vec low, Vec high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }

// The larger; NaN where one is NaN.
inline Vec larger(Vec a, Vec b) {
  return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
}

// high where v > high, else v
inline Vec at_most(Vec v, Vec high) { return _mm512_min_ps(high, v); }

// 2^y = scale 2^rest, 0 <= rest < 1 / kRoots; NaN is in both. rest of infinity is 0.
constexpr int kRoots = 16;
struct Power {
  Vec scale, rest;
  explicit Power(Vec y) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const Vec roots =
        _mm512_setr_ps(1.f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
                       1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                       1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f);
    // What is added to 1.5 * 2^19 becomes a whole number of sixteenths, the root's number last.
    const Vec sixteenths = _mm512_add_round_ps(y, _mm512_set1_ps(786432.f), kDown);
    scale = _mm512_scalef_ps(_mm512_permutexvar_ps(_mm512_castps_si512(sixteenths), roots), y);
    rest = _mm512_reduce_ps(y, 4 << 4 | kDown);
  }
};

// a / d for d >= 1. The minimum makes NaN, of infinities, harmless where the quotient is a number.
inline Vec quotient(Vec a, Vec d) {
  const Vec reciprocal = _mm512_rcp14_ps(d), near = a * reciprocal;
  return _mm512_min_ps(a - near * d, _mm512_set1_ps(3e38f)) * reciprocal + near;
}

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// p[0..count), then lanes of rest; 0 <= count <= kWidth. Nothing else is touched.
inline Vec load_part(const float* p, int64_t count, Vec rest) {
  return _mm512_mask_loadu_ps(rest, first(count), p);
}
inline void store_part(float* p, Vec v, int64_t count) {
  _mm512_mask_storeu_ps(p, first(count), v);
}

// v, loaded once: compilers would rather load it again for each of two permutations.
inline Vec kept(Vec v) {
  asm("" : "+v"(v));
  return v;
}

// Lanes [0, count) of v, zeros behind.
inline Vec first_lanes(Vec v, int64_t count) { return _mm512_maskz_mov_ps(first(count), v); }

// The sum of all lanes.
inline float across(Vec v) { return _mm512_reduce_add_ps(v); }

// __builtin_prefetch(p, 1) fetches for reading where prefetchw has no flag of its own.
inline void prefetch_for_write(const float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }

// Every other lane of a from kA on, then every other lane of b from kB on.
template <int kA, int kB>
inline Vec every_other(Vec a, Vec b) {
  const __m512i index =
      _mm512_setr_epi32(kA, kA + 2, kA + 4, kA + 6, kA + 8, kA + 10, kA + 12, kA + 14, kB + 16,
                        kB + 18, kB + 20, kB + 22, kB + 24, kB + 26, kB + 28, kB + 30);
  return _mm512_permutex2var_ps(a, index, b);
}

// The last lane of `before`, then all of v but its last.
inline Vec shifted_in(Vec v, Vec before) {
  return _mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(v), _mm512_castps_si512(before), 15));
}

#include "kernels/cpu/planes_activations.inc"
#include "kernels/cpu/planes_body.inc"
#include "kernels/cpu/planes_depthwise.inc"
#include "kernels/cpu/planes_pool.inc"

// Lane lanes[i] of v in lane i.
inline Vec picked(Vec v, Ints lanes) { return _mm512_permutexvar_ps((__m512i)lanes, v); }

// V vectors from any float on, by permutations of whole lines, which the next ones may use again:
// loads across lines take twice as long. The first and the last line are read whole.
template <int V>
class Stretch {
 public:
  void move(const float* from) {
    const auto at = reinterpret_cast<uintptr_t>(from);
    const int shift = static_cast<int>(at % 64 / 4);
    const auto* first = reinterpret_cast<const float*>(at - at % 64);
    const float* last = first + (shift ? V : V - 1) * kWidth;
    lanes_ =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(shift));
    if (first == first_ && last == last_) return;
    first_ = first, last_ = last;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) lines_[v] = _mm512_load_ps(first + v * kWidth);
    lines_[V] = _mm512_load_ps(last);
  }
  Vec operator[](int v) const { return _mm512_permutex2var_ps(lines_[v], lanes_, lines_[v + 1]); }

 private:
  const float *first_ = nullptr, *last_ = nullptr;
  Vec lines_[V + 1] = {};
  __m512i lanes_;
};

#include "kernels/cpu/planes_attention.inc"
#include "kernels/cpu/planes_norm.inc"
#include "kernels/cpu/planes_pack.inc"
#include "kernels/cpu/planes_rotary.inc"
#include "kernels/cpu/planes_rows.inc"
#include "kernels/cpu/planes_shares.inc"

}  // namespace

namespace sparseprune {
extern const PlaneKernels planes_avx512;
const PlaneKernels planes_avx512 = {finish,        depthwise,   split,     pool,   adaptive,
                                    nearest,       mean,        means,     scale,  multiply,
                                    pack_streams,  pack_scaled, pack_runs, spread, normalise,
                                    normalise_row, rotate,      attend<>};
}  // namespace sparseprune
