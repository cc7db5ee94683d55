// Kernels over planes, but for pooling, against loops in double.
#include <algorithm>
#include <limits>

#include "check.h"
#include "kernels/cpu/table.h"

using namespace sparseprune;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

void name(const char* kernel, int64_t size, int64_t detail) {
  std::snprintf(running, sizeof running, "%s %s size=%d detail=%d", isa_name(current_isa()), kernel,
                static_cast<int>(size), static_cast<int>(detail));
}

double activated(double v, const Activation& a) {
  const double hard = std::min(std::max(v + 3, 0.), 6.) / 6;
  switch (a.kind) {
    case Activation::kClamp:
      return v < a.clamp.low ? a.clamp.low : v > a.clamp.high ? a.clamp.high : v;
    case Activation::kLeaky:
      return v > 0 ? v : v * a.clamp.low;
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
  }
  return kNan;
}

// NaN where the reference is NaN, infinite where it is (or no float), else near it.
bool near(float y, double expected, double scale) {
  if (std::isnan(expected)) return std::isnan(y);
  if (std::abs(expected) > std::numeric_limits<float>::max())
    return std::isinf(y) && std::signbit(y) == std::signbit(expected);
  return std::abs(y - expected) <= scale;
}

void expect_all(const Guarded<float>& y, const std::vector<double>& expected,
                const std::vector<double>& scale) {
  expect(y.surroundings_intact(), "wrote outside y");
  for (size_t i = 0; i < expected.size(); ++i)
    if (!near(y[i], expected[i], scale[i]))
      return expect(false, "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) + ", not " +
                               std::to_string(expected[i]));
  expect(true, "");
}

std::vector<Activation> activations() {
  std::vector<Activation> all;
  for (const Clamp& c : {Clamp{}, Clamp{0, kInf}, Clamp{0, 6}, Clamp{-.5f, .75f}})
    all.push_back({Activation::kClamp, c});
  all.push_back({Activation::kLeaky, {.1f, 0}});
  for (int kind = Activation::kSilu; kind <= Activation::kTanh; ++kind)
    all.push_back({static_cast<Activation::Kind>(kind), {}});
  return all;
}

Activation any_activation(Random& random) {
  const std::vector<Activation> all = activations();
  return all[static_cast<size_t>(random.integer(0, static_cast<int64_t>(all.size()) - 1))];
}

// Where a lane is dead, the sum may be anything.
std::vector<int32_t> some_live(int64_t lanes, Random& random) {
  std::vector<int32_t> live(static_cast<size_t>(lanes));
  for (int32_t& v : live) v = random.share() < .8 ? -1 : 0;
  return live;
}

// Every float's neighbourhood on a grid of exponents, the ends, and dense near 0.
void check_activations(Random& random) {
  std::vector<float> x{0.f, -0.f, kNan, -kNan, kInf, -kInf, 1e-45f, -1e-45f, 3.4028234e38f};
  for (float v = 1e-40f; v < 3e38f; v *= 1.0937f) x.push_back(v), x.push_back(-v);
  for (int i = -3000; i <= 3000; ++i)
    x.push_back(static_cast<float>(i) * .005f + .001f * random.normal());
  for (float v = 80; v < 120; v += .07f) x.push_back(v), x.push_back(-v);
  while (x.size() % 16) x.push_back(1.f);
  const auto lanes = static_cast<int64_t>(x.size());
  const std::vector<int32_t> live(x.size(), -1);
  for (const Activation& a : activations()) {
    name("activation", lanes, a.kind);
    const Guarded<float> y(std::vector<float>(x.size()), Against::high_page);
    const Guarded in(x, Against::high_page);
    plane_kernels().finish(in.read_only(), lanes, nullptr, live.data(), lanes, 1, a, y.data(),
                           lanes);
    std::vector<double> expected, scale;
    for (const float v : x) {
      expected.push_back(activated(v, a));
      scale.push_back(2e-6 * std::max(1., std::abs(expected.back())));
    }
    expect_all(y, expected, scale);
    const Guarded<float> same(x, Against::low_page);  // in place
    plane_kernels().finish(same.data(), lanes, nullptr, live.data(), lanes, 1, a, same.data(),
                           lanes);
    expect(std::memcmp(same.data(), y.data(), x.size() * 4) == 0, "in place gave other bits");
  }
}

void check_finish(int64_t lanes, int64_t rows, bool has_residual, Against against, Random& random) {
  name("finish", lanes, rows);
  const Activation a = any_activation(random);
  const int64_t in_stride = lanes + 16 * random.integer(0, 2), stride = lanes + 16;
  std::vector<float> sums = random.normals((rows - 1) * in_stride + lanes);
  const std::vector<float> residual = random.normals((rows - 1) * stride + lanes);
  const std::vector<int32_t> live = some_live(lanes, random);
  std::vector<double> expected(residual.size(), 7), scale(residual.size(), 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < lanes; ++i) {
      float& v = sums[r * in_stride + i];
      const double sum = double{v} + (has_residual ? residual[r * stride + i] : 0.f);
      expected[r * stride + i] = live[i] ? activated(sum, a) : 0;
      scale[r * stride + i] = live[i] ? 2e-6 * (1 + std::abs(sum)) : 0;
      if (!live[i]) v = kNan;
    }
  const Guarded in(sums, against), more(residual, against);
  const Guarded alive(live, against);
  const Guarded<float> y(std::vector<float>(residual.size(), 7.f), against);
  plane_kernels().finish(in.read_only(), in_stride, has_residual ? more.read_only() : nullptr,
                         alive.read_only(), lanes, rows, a, y.data(), stride);
  expect_all(y, expected, scale);

  name("scale", lanes, a.kind);
  const Guarded<float> scaled(std::vector<float>(live.size()), against);
  plane_kernels().scale(in.data(), -1.25f, alive.data(), lanes, a, scaled.data());
  expected.resize(live.size());
  for (int64_t i = 0; i < lanes; ++i) expected[i] = live[i] ? activated(-1.25 * sums[i], a) : 0;
  expect_all(scaled, expected, std::vector<double>(live.size(), 1e-5));
}

// Taps: the offsets of a kernel of runs x run, or any.
std::vector<int32_t> taps(int64_t runs, int64_t run, int64_t step, int64_t row, Random& random) {
  std::vector<int32_t> offsets;
  const auto jitter = static_cast<int32_t>(random.integer(0, 3));
  for (int64_t r = 0; r < runs; ++r)
    for (int64_t k = 0; k < run; ++k)
      offsets.push_back(static_cast<int32_t>(r * row + k * step) + jitter);
  return offsets;
}

// out[i] = activation(bias + sum_t weight[t] x[offset[t] + stride i] + residual[i]) & live[i]
void check_depthwise(const std::vector<int32_t>& offsets, int64_t stride, int64_t width,
                     Against against, Random& random) {
  const bool row2 = stride == 2, has_residual = random.integer(0, 1) == 1;
  name(row2 ? "depthwise_row2" : "depthwise", width, static_cast<int64_t>(offsets.size()));
  const Activation a = any_activation(random);
  const int32_t low = *std::min_element(offsets.begin(), offsets.end());
  const int32_t high = *std::max_element(offsets.begin(), offsets.end());
  const std::vector<float> x = random.normals(high - low + stride * (width - 1) + 1);
  const std::vector<float> weight = random.normals(size_of(offsets));
  const std::vector<float> residual = random.normals(width);
  const std::vector<int32_t> live =
      row2 ? std::vector<int32_t>(static_cast<size_t>(width), -1) : some_live(width, random);
  const float bias = random.normal();
  std::vector<double> expected, scale;
  for (int64_t i = 0; i < width; ++i) {
    double sum = bias, magnitude = 1 + std::abs(sum);
    for (size_t t = 0; t < offsets.size(); ++t) {
      const double product = double{weight[t]} * x[offsets[t] - low + stride * i];
      sum += product, magnitude += std::abs(product);
    }
    if (has_residual) sum += residual[i];
    expected.push_back(live[i] ? activated(sum, a) : 0);
    scale.push_back(3e-6 * magnitude);
  }
  const Guarded in(x, against), w(weight, against), more(residual, against);
  const Guarded at(offsets, against), alive(live, against);
  const Guarded<float> y(std::vector<float>(live.size(), kNan), against);
  const float* r = has_residual ? more.read_only() : nullptr;
  if (row2)
    plane_kernels().depthwise_row2(in.read_only() - low, at.read_only(), w.read_only(),
                                   size_of(offsets), bias, r, width, a, y.data());
  else
    plane_kernels().depthwise(in.read_only() - low, at.read_only(), w.read_only(), size_of(offsets),
                              bias, r, alive.read_only(), width, a, y.data());
  expect_all(y, expected, scale);
}

void check_copies(int64_t n, Against against, Random& random) {
  for (const int64_t stride : {1, 2, 3, 5}) {
    name("every", n, stride);
    const Guarded in(random.normals((n - 1) * stride + 1), against);
    const Guarded<float> y(std::vector<float>(static_cast<size_t>(n), kNan), against);
    plane_kernels().every(in.read_only(), stride, n, y.data());
    std::vector<double> expected;
    for (int64_t i = 0; i < n; ++i) expected.push_back(in[i * stride]);
    expect_all(y, expected, std::vector<double>(expected.size()));
  }
  name("sum", n, 0);
  const Guarded in(random.normals(n), against);
  double sum = 0, magnitude = 0;
  for (int64_t i = 0; i < n; ++i) sum += in[i], magnitude += std::abs(in[i]);
  const float found = plane_kernels().sum(in.read_only(), n);
  expect(std::abs(found - sum) <= 1e-6 * magnitude, std::to_string(found));
}

void check_pack(int64_t lanes, int64_t cols, Against against, Random& random) {
  name("pack_streams", lanes, cols);
  const Guarded in(random.normals(lanes + 200), against);
  std::vector<int32_t> offsets(static_cast<size_t>(cols));
  for (int32_t& offset : offsets) offset = static_cast<int32_t>(random.integer(0, 200));
  if (cols) offsets[0] = 200;
  const Guarded at(offsets, against);
  const Guarded<float> panel(std::vector<float>(static_cast<size_t>(cols * lanes), kNan), against);
  plane_kernels().pack_streams(in.read_only(), at.read_only(), cols, panel.data(), lanes);
  std::vector<double> expected;
  for (const int32_t offset : offsets)
    for (int64_t i = 0; i < lanes; ++i) expected.push_back(in[offset + i]);
  expect_all(panel, expected, std::vector<double>(expected.size()));
}

}  // namespace

void check_planes(int64_t count, Random& random) {
  check_activations(random);
  for (const Against against : {Against::low_page, Against::high_page}) {
    for (const int64_t lanes : {16, 32, 48, 64, 80, 256, 1024, 1040, 2064}) {
      for (const int64_t rows : {1, 2, 5})
        for (const bool residual : {false, true})
          check_finish(lanes, rows, residual, against, random);
      for (const int64_t cols : {0, 1, 2, 33}) check_pack(lanes, cols, against, random);
      for (const auto& [runs, run] : {std::pair{1, 1}, {1, 2}, {3, 3}, {5, 5}, {7, 7}, {9, 3}})
        check_depthwise(taps(runs, run, random.integer(1, 2), 40, random), 1, lanes, against,
                        random);
    }
    for (int64_t n = 1; n <= 70; ++n) {
      check_copies(n, against, random);
      for (const auto& [runs, run] : {std::pair{1, 1}, {1, 2}, {3, 3}, {5, 5}, {7, 7}, {9, 3}})
        for (const int64_t step : {1, 2})
          check_depthwise(taps(runs, run, step, 2 * n + 3, random), 2, n, against, random);
    }
    for (const int64_t n : {127, 128, 129, 1000, 4097}) check_copies(n, against, random);
    for (int64_t i = 0; i < count; ++i) {
      std::vector<int32_t> any(static_cast<size_t>(random.integer(1, 30)));
      for (int32_t& offset : any) offset = static_cast<int32_t>(random.integer(-50, 50));
      check_depthwise(any, 1, 16 * random.integer(1, 20), against, random);
      check_depthwise(any, 2, random.integer(1, 120), against, random);
    }
  }
  name("sum", 0, 0);
  expect(plane_kernels().sum(nullptr, 0) == 0.f, "no floats sum to 0");
  check_pools(count, random);
}
