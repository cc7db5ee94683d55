// Kernels over planes in portable C++: vectors of the base instruction set, edges float by float.
#include "kernels/cpu/planes.h"

namespace {

constexpr int kWidth = 4, kVectors = 4;
constexpr bool kManyRegisters = false;
typedef float Vec __attribute__((vector_size(4 * kWidth), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * kWidth), may_alias));

// low where v < low, high where v > high, else v.
inline Vec limit(Vec v, Vec low, Vec high) {
  const Vec raised = v < low ? low : v;
  return raised > high ? high : raised;
}

// The larger; NaN where one is NaN.
inline Vec larger(Vec a, Vec b) {
  const Vec v = a > b ? a : b;
  return a == a ? v : a;
}

// high where v > high, else v
inline Vec at_most(Vec v, Vec high) { return v > high ? high : v; }

// 2^y = scale 2^rest, |rest| <= 1 / 2; infinity from 2^128 on, never below 2^-126. NaN is in rest.
constexpr int kRoots = 1;
struct Power {
  Vec scale, rest;
  explicit Power(Vec y) {
    constexpr float kRound = 12582912.f;  // 1.5 * 2^23: what is added to it becomes whole
    y = limit(y, -126.f - Vec{}, 128.f - Vec{});
    const Vec whole = y + kRound;
    rest = y - (whole - kRound);
    scale = (Vec)(((Whole)whole + 127) << 23);
  }
};

inline Vec quotient(Vec a, Vec d) { return a / d; }

// p[0..count), then lanes of rest; 0 <= count <= kWidth. Nothing else is touched.
inline Vec load_part(const float* p, int64_t count, Vec rest) {
  for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
  return rest;
}
inline void store_part(float* p, Vec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

inline Vec kept(Vec v) { return v; }

// Lanes [0, count) of v, zeros behind.
inline Vec first_lanes(Vec v, int64_t count) {
  for (int64_t i = count; i < kWidth; ++i) v[i] = 0;
  return v;
}

// The sum of all lanes.
inline float across(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline void prefetch_for_write(const float* p) { __builtin_prefetch(p, 1); }

// Every other lane of a from kA on, then every other lane of b from kB on.
template <int kA, int kB>
inline Vec every_other(Vec a, Vec b) {
  return Vec{a[kA], a[kA + 2], b[kB], b[kB + 2]};
}

// The last lane of `before`, then all of v but its last.
inline Vec shifted_in(Vec v, Vec before) { return Vec{before[3], v[0], v[1], v[2]}; }

#include "kernels/cpu/planes_activations.inc"
#include "kernels/cpu/planes_body.inc"
#include "kernels/cpu/planes_depthwise.inc"
#include "kernels/cpu/planes_pool.inc"

// Lane lanes[i] of v in lane i.
inline Vec picked(Vec v, Ints lanes) {
  return Vec{v[lanes[0]], v[lanes[1]], v[lanes[2]], v[lanes[3]]};
}

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
extern const PlaneKernels planes_scalar;
const PlaneKernels planes_scalar = {finish,        depthwise,   split,     pool,   adaptive,
                                    nearest,       mean,        means,     scale,  multiply,
                                    pack_streams,  pack_scaled, pack_runs, spread, normalise,
                                    normalise_row, rotate,      attend<>};
}  // namespace sparseprune
