// Kernels over planes in portable C++: vectors of the base instruction set, edges float by float.
#include "kernels/cpu/planes.h"

namespace {

constexpr int kWidth = 4, kVectors = 4;
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

// v * 2^n for whole n in [-252, 254], in two steps: 2^n itself may be no float.
inline Vec scaled(Vec v, Vec n) {
  const Whole whole = __builtin_convertvector(n, Whole), half = whole >> 1;
  return v * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
}

// p[0..count), then lanes of rest; 0 <= count <= kWidth. Nothing else is touched.
inline Vec load_part(const float* p, int64_t count, Vec rest) {
  for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
  return rest;
}
inline void store_part(float* p, Vec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

inline Vec kept(Vec v) { return v; }

// Every other lane of a from kA on, then every other lane of b from kB on.
template <int kA, int kB>
inline Vec every_other(Vec a, Vec b) {
  return Vec{a[kA], a[kA + 2], b[kB], b[kB + 2]};
}

#include "kernels/cpu/planes_activations.inc"
#include "kernels/cpu/planes_body.inc"
#include "kernels/cpu/planes_pool.inc"

}  // namespace

namespace sparseprune {
extern const PlaneKernels planes_scalar;
const PlaneKernels planes_scalar = {finish, depthwise, depthwise_row2, every,
                                    pool,   sum,       scale,          pack_streams};
}  // namespace sparseprune
