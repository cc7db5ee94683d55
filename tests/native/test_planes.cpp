// Kernels over planes, but for windows, against loops in double.
#include <algorithm>
#include <limits>

#include "planes_check.h"

namespace {

// Where a lane is dead, the sum may be anything.
std::vector<int32_t> some_live(int64_t lanes, Random& random) {
  std::vector<int32_t> live(static_cast<size_t>(lanes));
  for (int32_t& v : live) v = random.share() < .8 ? -1 : 0;
  return live;
}

// Every float's neighbourhood on a grid of exponents, the ends, dense near 0, and where the error
// is largest, as that is promised.
void check_activations(Random& random) {
  std::vector<float> x{0.f, -0.f, kNan, -kNan, kInf, -kInf, 1e-45f, -1e-45f, 3.4028234e38f};
  for (float v = 1e-40f; v < 3e38f; v *= 1.0937f) x.push_back(v), x.push_back(-v);
  for (int i = -3000; i <= 3000; ++i)
    x.push_back(static_cast<float>(i) * .005f + .001f * random.normal());
  for (float v = 80; v < 120; v += .07f) x.push_back(v), x.push_back(-v);
  for (float v = .01f; v < 11; v += 3e-4f) x.push_back(v), x.push_back(-v);
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
      scale.push_back(2e-7 * std::max(1., std::abs(expected.back())));
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

void check_mean(int64_t lanes, int64_t planes, Against against, Random& random) {
  name("mean", lanes, planes);
  const int64_t x_plane = lanes + 16 * random.integer(0, 2);
  Planes to;
  to.lead = 16 * random.integer(0, 1), to.plane = to.lead + 16 * random.integer(1, 2);
  const Guarded in(random.normals((planes - 1) * x_plane + lanes), against);
  const Guarded<float> y(std::vector<float>(static_cast<size_t>(planes * to.plane), kNan), against);
  const int64_t count = random.pick({49, 80});  // few elements, and many
  plane_kernels().mean(in.read_only(), x_plane, lanes, count, planes, to, y.data() + to.lead);
  std::vector<double> expected(static_cast<size_t>(planes * to.plane)), scale = expected;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t i = 0; i < lanes; ++i) {
      const double v = double{in[p * x_plane + i]} / static_cast<double>(count);
      expected[p * to.plane + to.lead] += v;
      scale[p * to.plane + to.lead] += 1e-6 * std::abs(v);
    }
  expect_all(y, expected, scale);
}

void check_means(Against against, Random& random) {
  const int64_t images = random.integer(2, 40), columns = random.integer(1, 4);
  Planes from, to;
  from.depth = random.integer(1, 2), from.height = random.integer(1, 7);
  from.width = images * columns, from.row = from.width + random.integer(0, 9);
  from.slice = from.row * (from.height + random.integer(0, 1));
  to.width = images, to.lead = 16 * random.integer(0, 1), to.plane = to.lead + 48;
  name("means", images, columns);
  const Guarded in(random.normals(from.flat()), against);
  const Guarded<float> y(std::vector<float>(static_cast<size_t>(to.plane), kNan), against);
  plane_kernels().means(in.read_only(), from, to, y.data() + to.lead);
  std::vector<double> expected(static_cast<size_t>(to.plane)), scale = expected;
  const auto count = static_cast<double>(from.depth * from.height * columns);
  for (int64_t z = 0; z < from.depth; ++z)
    for (int64_t r = 0; r < from.height; ++r)
      for (int64_t j = 0; j < from.width; ++j) {
        const double v = double{in[z * from.slice + r * from.row + j]} / count;
        expected[to.lead + j % images] += v;
        scale[to.lead + j % images] += 1e-6 * std::abs(v);
      }
  expect_all(y, expected, scale);
}

// The same panel with lanes outside of the image, whose infinities are zeros in it.
void check_inside(std::vector<float> x, const std::vector<int32_t>& offsets, int64_t lanes,
                  Against against, Random& random) {
  const auto cols = static_cast<int64_t>(offsets.size());
  name("pack_streams inside", lanes, cols);
  for (float& value : x)
    if (random.share() < .1) value = std::numeric_limits<float>::infinity();
  const Guarded in(x, against);
  const Guarded at(offsets, against);
  const Guarded masks(some_live(lanes + 40, random), against);
  std::vector<int32_t> of;
  for (int64_t c = 0; c < cols; ++c) of.push_back(static_cast<int32_t>(random.integer(-1, 40)));
  const Guarded begins(of, against);
  const Guarded<float> panel(std::vector<float>(static_cast<size_t>(cols * lanes), kNan), against);
  plane_kernels().pack_streams(in.read_only(), at.read_only(), cols,
                               {begins.read_only(), masks.read_only()}, panel.data(), lanes);
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t i = 0; i < lanes; ++i) {
      const bool inside = of[c] < 0 || masks[of[c] + i];
      if (panel[c * lanes + i] != (inside ? x[offsets[c] + i] : 0.f))
        return expect(false, "column " + std::to_string(c) + ", lane " + std::to_string(i));
    }
  expect(panel.surroundings_intact(), "wrote outside the panel");
}

void check_pack(int64_t lanes, int64_t cols, Against against, Random& random) {
  name("pack_streams", lanes, cols);
  const Guarded in(random.normals(lanes + 200), against);
  std::vector<int32_t> offsets(static_cast<size_t>(cols));
  for (int32_t& offset : offsets) offset = static_cast<int32_t>(random.integer(0, 200));
  if (cols) offsets[0] = 200;
  const Guarded at(offsets, against);
  const Guarded<float> panel(std::vector<float>(static_cast<size_t>(cols * lanes), kNan), against);
  plane_kernels().pack_streams(in.read_only(), at.read_only(), cols, {}, panel.data(), lanes);
  std::vector<double> expected;
  for (const int32_t offset : offsets)
    for (int64_t i = 0; i < lanes; ++i) expected.push_back(in[offset + i]);
  expect_all(panel, expected, std::vector<double>(expected.size()));
  check_inside(random.normals(lanes + 200), offsets, lanes, against, random);
  for (const bool shifts : {false, true}) {
    name(shifts ? "pack_scaled and shifted" : "pack_scaled", lanes, cols);
    const int64_t stride = random.pick({1, 16});
    const Guarded factor(random.normals(std::max<int64_t>((cols - 1) * stride + 1, 0)), against);
    const Guarded shift(random.normals(cols), against);
    const Clamp clamp{-.5f, shifts ? 2.f : std::numeric_limits<float>::infinity()};
    plane_kernels().pack_scaled(
        in.read_only(), at.read_only(), cols,
        {factor.read_only(), stride, shifts ? shift.read_only() : nullptr, clamp}, panel.data(),
        lanes);
    std::vector<double> scaled, tolerance;
    for (int64_t i = 0; i < cols * lanes; ++i) {
      const int64_t c = i / lanes;
      const double v = expected[i] * factor[c * stride] + (shifts ? shift[c] : 0.);
      scaled.push_back(std::clamp<double>(v, clamp.low, clamp.high));
      tolerance.push_back(1e-6 * (1 + std::abs(v)));
    }
    expect_all(panel, scaled, tolerance);
  }
}

}  // namespace

void check_planes(int64_t count, Random& random) {
  check_activations(random);
  for (const Against against : {Against::low_page, Against::high_page})
    for (const int64_t lanes : {16, 32, 48, 64, 80, 256, 1024, 1040, 2064}) {
      for (const int64_t rows : {1, 2, 5, 19})
        for (const bool residual : {false, true})
          check_finish(lanes, rows, residual, against, random);
      for (const int64_t cols : {0, 1, 2, 33}) check_pack(lanes, cols, against, random);
      for (const int64_t planes : {1, 3, 8, 11}) check_mean(lanes, planes, against, random);
      check_means(against, random);
    }
  check_rows(count, random);
  check_windows(count, random);
  check_pools(count, random);
}
