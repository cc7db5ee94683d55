// Depthwise convolution and splitting by a stride, against loops in double.
#include "planes_check.h"

namespace {

Planes any_planes(int64_t depth, int64_t height, int64_t width, Random& random) {
  Planes p;
  p.depth = depth, p.height = height, p.width = width;
  p.row = width + random.integer(0, 3) + (random.share() < .1 ? 20 : 0);
  p.slice = p.row * (height + random.integer(0, 1));
  p.lead = 16 * random.integer(0, 2);
  p.plane = p.lead + p.lanes() + 16 * random.integer(0, 2);
  return p;
}

std::vector<int32_t> live_of(const Planes& p) {
  std::vector<int32_t> live(static_cast<size_t>(p.lanes()));
  for (int64_t z = 0; z < p.depth; ++z)
    for (int64_t r = 0; r < p.height; ++r)
      std::fill_n(live.begin() + z * p.slice + r * p.row, p.width, -1);
  return live;
}

struct Depthwise {
  std::vector<int32_t> offsets;
  int64_t stride, row, slice;
  Planes to;
};

// A window of side x side, its rows `pitch` floats of x apart.
Depthwise square(int64_t side, int64_t stride, int64_t height, int64_t width, Random& random) {
  Depthwise d{{}, stride, 0, 0, any_planes(1, height, width, random)};
  const int64_t pitch = stride == 1 ? d.to.row : 2 * width + random.integer(0, 3);
  const auto first = static_cast<int32_t>(random.integer(-30, 5));
  for (int64_t i = 0; i < side; ++i)
    for (int64_t j = 0; j < side; ++j)
      d.offsets.push_back(first + static_cast<int32_t>(i * pitch + j));
  d.row = stride * pitch, d.slice = stride == 1 ? d.to.slice : 0;
  return d;
}

Depthwise any(Random& random) {
  Depthwise d{{}, random.integer(1, 2), 0, 0, {}};
  d.to = any_planes(random.integer(1, 3), random.integer(1, 9), random.integer(1, 70), random);
  d.row = d.stride == 1 ? d.to.row : random.integer(1, 3) * (2 * d.to.width + 1);
  d.slice = d.stride == 1 ? d.to.slice : d.row * d.to.height + 3;
  const int64_t run = random.pick({1, 2, 3, 3, 5});
  for (int64_t runs = random.integer(1, 9); runs; --runs) {
    const auto first = static_cast<int32_t>(random.integer(-50, 50));
    for (int64_t k = 0; k < run; ++k) d.offsets.push_back(first + static_cast<int32_t>(k));
  }
  return d;
}

struct Problem {
  std::vector<float> x, weight, bias, residual;
  int64_t low, planes, x_plane, residual_plane;
  bool has_bias, has_residual;
  Activation activation;
};

Problem problem(const Depthwise& d, Random& random) {
  Problem p{};
  p.planes = random.integer(1, 3);
  p.low = *std::min_element(d.offsets.begin(), d.offsets.end());
  const int64_t high = *std::max_element(d.offsets.begin(), d.offsets.end());
  const Planes& to = d.to;
  int64_t last = (to.depth - 1) * d.slice + (to.height - 1) * d.row + d.stride * (to.width - 1);
  if (d.stride == 1) last = to.lanes() - 1;
  p.x_plane = random.integer(0, 300);
  p.x = random.normals((p.planes - 1) * p.x_plane + high - p.low + last + 1 + 32);
  p.weight = random.normals(p.planes * size_of(d.offsets)), p.bias = random.normals(p.planes);
  p.residual_plane = to.plane + 16 * random.integer(0, 1);
  p.residual = random.normals((p.planes - 1) * p.residual_plane + to.lanes());
  p.has_bias = random.integer(0, 1), p.has_residual = random.integer(0, 1);
  p.activation = any_activation(random);
  return p;
}

// One output before its activation, and the sum of magnitudes.
std::pair<double, double> sum_at(const Depthwise& d, const Problem& p, int64_t plane, int64_t z,
                                 int64_t r, int64_t j) {
  double sum = p.has_bias ? p.bias[plane] : 0, magnitude = 1 + std::abs(sum);
  for (size_t t = 0; t < d.offsets.size(); ++t) {
    const int64_t at = d.offsets[t] - p.low + z * d.slice + r * d.row + d.stride * j;
    const double product =
        double{p.weight[plane * size_of(d.offsets) + t]} * p.x[plane * p.x_plane + at];
    sum += product, magnitude += std::abs(product);
  }
  if (p.has_residual)
    sum += p.residual[plane * p.residual_plane + z * d.to.slice + r * d.to.row + j];
  return {sum, magnitude};
}

void check_depthwise(const Depthwise& d, Against against, Random& random) {
  const Problem p = problem(d, random);
  const Planes& to = d.to;
  std::snprintf(running, sizeof running, "%s depthwise taps=%d stride=%d %dx%dx%d row %d act=%d",
                isa_name(current_isa()), static_cast<int>(d.offsets.size()),
                static_cast<int>(d.stride), static_cast<int>(to.depth), static_cast<int>(to.height),
                static_cast<int>(to.width), static_cast<int>(to.row), p.activation.kind);
  std::vector<double> expected(static_cast<size_t>(p.planes * to.plane)), scale = expected;
  for (int64_t plane = 0; plane < p.planes; ++plane)
    for (int64_t z = 0; z < to.depth; ++z)
      for (int64_t r = 0; r < to.height; ++r)
        for (int64_t j = 0; j < to.width; ++j) {
          const auto [sum, magnitude] = sum_at(d, p, plane, z, r, j);
          const int64_t at = plane * to.plane + to.lead + z * to.slice + r * to.row + j;
          expected[at] = activated(sum, p.activation), scale[at] = 3e-6 * magnitude;
        }
  const Guarded in(p.x, against), weight(p.weight, against), bias(p.bias, against);
  const Guarded residual(p.residual, against);
  const Guarded at(d.offsets, against), live(live_of(to), against);
  const Guarded<float> y(std::vector<float>(expected.size(), kNan), against);
  const DepthwiseWindow window{at.read_only(),  size_of(d.offsets), d.stride, d.row, d.slice, to,
                               live.read_only()};
  plane_kernels().depthwise(
      window,
      {p.planes, in.read_only() - p.low, p.x_plane, weight.read_only(),
       p.has_bias ? bias.read_only() : nullptr, p.has_residual ? residual.read_only() : nullptr,
       p.residual_plane, y.data() + to.lead},
      p.activation);
  expect_all(y, expected, scale);
}

void check_split(int64_t stride, int64_t width, Against against, Random& random) {
  name("split", width, stride);
  std::vector<int64_t> shift;
  const int64_t before = random.integer(0, 3);
  for (int64_t residue = 0; residue < stride; ++residue)
    if (random.share() < .8) shift.push_back(residue - before);
  if (shift.empty()) shift.push_back(-before);
  const int64_t out = std::max<int64_t>(1, (width + before) / stride + random.integer(-2, 2));
  const Planes to = any_planes(random.integer(1, 2), random.integer(1, 4), out, random);
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < to.depth * to.height; ++r)
    rows.push_back(random.share() < .2 ? -1 : static_cast<int32_t>(random.integer(0, 3) * width));
  const auto phases = static_cast<int64_t>(shift.size());
  const Guarded in(random.normals(4 * width), against);
  const Guarded at(rows, against);
  const Guarded by(shift, against);
  const Guarded<float> y(std::vector<float>(static_cast<size_t>(phases * to.plane), kNan), against);
  plane_kernels().split(in.read_only(), {at.read_only(), width, stride, phases, by.read_only(), to},
                        y.data() + to.lead);
  std::vector<double> expected(static_cast<size_t>(phases * to.plane));
  for (int64_t p = 0; p < phases; ++p)
    for (int64_t z = 0; z < to.depth; ++z)
      for (int64_t r = 0; r < to.height; ++r)
        for (int64_t j = 0; j < to.width; ++j) {
          const int64_t column = j * stride + shift[p], row = rows[z * to.height + r];
          if (row >= 0 && column >= 0 && column < width)
            expected[p * to.plane + to.lead + z * to.slice + r * to.row + j] = in[row + column];
        }
  expect_all(y, expected, std::vector<double>(expected.size()));
}

}  // namespace

void check_windows(int64_t count, Random& random) {
  for (const Against against : {Against::low_page, Against::high_page}) {
    for (const int64_t side : {1, 3, 5, 7})
      for (const int64_t stride : {1, 2})
        for (const int64_t height : {1, 2, 4, 5, 7, 8, 9, 14, 15, 28})
          for (const int64_t width : {1, 3, 7, 8, 13, 14, 15, 16, 17, 28, 32, 33, 56})
            check_depthwise(square(side, stride, height, width, random), against, random);
    for (int64_t width = 1; width <= 70; ++width)
      for (const int64_t stride : {1, 2, 2, 3, 4}) check_split(stride, width, against, random);
    for (int64_t i = 0; i < 4 * count; ++i) check_depthwise(any(random), against, random);
  }
}
