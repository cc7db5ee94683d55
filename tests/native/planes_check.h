// What tests of kernels over planes share: activations in double, comparisons, names.
#pragma once
#include <algorithm>
#include <limits>

#include "check.h"
#include "kernels/cpu/table.h"

using namespace sparseprune;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

inline void name(const char* kernel, int64_t size, int64_t detail) {
  std::snprintf(running, sizeof running, "%s %s size=%d detail=%d", isa_name(current_isa()), kernel,
                static_cast<int>(size), static_cast<int>(detail));
}

inline double activated(double v, const Activation& a) {
  const double hard = std::min(std::max(v + 3, 0.), 6.) / 6;
  switch (a.kind) {
    case Activation::kClamp:
      return v < a.clamp.low ? a.clamp.low : v > a.clamp.high ? a.clamp.high : v;
    case Activation::kLeaky:
      return v > 0 ? v : v * a.clamp.low;
    case Activation::kElu:
      return v > 0 ? v * a.clamp.high : a.clamp.low * std::expm1(v);
    case Activation::kSilu:
      return v / (1 + std::exp(-v));
    case Activation::kGelu:
      return v == kInf ? v : v * .5 * std::erfc(-v / std::sqrt(2.));
    case Activation::kGeluTanh:
      return v / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::kHardswish:
      return std::isnan(v) ? v : v * hard;
    case Activation::kHardsigmoid:
      return std::isnan(v) ? v : hard;
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-v));
    case Activation::kTanh:
      return std::tanh(v);
    case Activation::kMish:
      return v * std::tanh(std::log1p(std::exp(v)));
  }
  return kNan;
}

// NaN where the reference is NaN, infinite where it is (or no float), else near it.
inline bool near(float y, double expected, double scale) {
  if (std::isnan(expected)) return std::isnan(y);
  if (std::abs(expected) > std::numeric_limits<float>::max())
    return std::isinf(y) && std::signbit(y) == std::signbit(expected);
  return std::abs(y - expected) <= scale;
}

inline void expect_all(const Guarded<float>& y, const std::vector<double>& expected,
                       const std::vector<double>& scale) {
  expect(y.surroundings_intact(), "wrote outside y");
  for (size_t i = 0; i < expected.size(); ++i)
    if (!near(y[i], expected[i], scale[i]))
      return expect(false, "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) + ", not " +
                               std::to_string(expected[i]));
  expect(true, "");
}

inline std::vector<Activation> activations() {
  std::vector<Activation> all;
  for (const Clamp& c : {Clamp{}, Clamp{0, kInf}, Clamp{0, 6}, Clamp{-.5f, .75f}})
    all.push_back({Activation::kClamp, c});
  all.push_back({Activation::kLeaky, {.1f, 0}});
  all.push_back({Activation::kElu, {1.5f, .75f}});
  for (int kind = Activation::kSilu; kind <= Activation::kMish; ++kind)
    all.push_back({static_cast<Activation::Kind>(kind), {}});
  return all;
}

inline Activation any_activation(Random& random) {
  const std::vector<Activation> all = activations();
  return all[static_cast<size_t>(random.integer(0, static_cast<int64_t>(all.size()) - 1))];
}
