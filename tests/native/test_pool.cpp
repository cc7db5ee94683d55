// Pooling of one plane against loops in double: sizes, paddings and divisors as torch has them.
#include <algorithm>
#include <array>
#include <limits>

#include "check.h"
#include "kernels/cpu/table.h"

using namespace sparseprune;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Pool {
  int64_t size[3];
  PoolWindow window;
  bool ceil;

  // torch's output sizes: in ceil mode no window begins behind the image and its left padding.
  int64_t out(int axis) const {
    const PoolWindow& w = window;
    const int64_t over = w.padded_end[axis] - w.dilation[axis] * (w.kernel[axis] - 1) - 1;
    const int64_t n = (over + (ceil ? w.stride[axis] - 1 : 0)) / w.stride[axis] + 1;
    const bool behind = (n - 1) * w.stride[axis] >= size[axis] + w.before[axis];
    return n - (ceil && behind);
  }
  bool possible() const {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t over = ceil ? window.stride[axis] - 1 : 0;
      if (window.padded_end[axis] + over <= window.dilation[axis] * (window.kernel[axis] - 1))
        return false;
    }
    return true;
  }
};

Planes planes(int64_t depth, int64_t height, int64_t width, Random& random) {
  Planes p;
  p.depth = depth, p.height = height, p.width = width;
  p.row = width + random.integer(0, 3);
  p.slice = p.row * height + random.integer(0, 5);
  p.lead = 16 * random.integer(0, 1);
  p.plane = p.lead + p.lanes() + 16 * random.integer(0, 1);
  return p;
}

// One output in double, with torch's divisor of an average.
double window_at(const Pool& p, const Planes& from, const float* x, const int64_t* o) {
  const PoolWindow& w = p.window;
  double sum = 0, highest = -kInf;
  int64_t live = 0, padded = 0;
  bool nan = false;
  for (int64_t a = 0; a < w.kernel[0]; ++a)
    for (int64_t b = 0; b < w.kernel[1]; ++b)
      for (int64_t c = 0; c < w.kernel[2]; ++c) {
        const int64_t k[3] = {a, b, c};
        int64_t at[3];
        bool inside = true, within = true;
        for (int axis = 0; axis < 3; ++axis) {
          const int64_t place = o[axis] * w.stride[axis] + k[axis] * w.dilation[axis];
          at[axis] = place - w.before[axis];
          inside = inside && at[axis] >= 0 && at[axis] < p.size[axis];
          within = within && place < w.padded_end[axis];
        }
        padded += within;
        if (!inside) continue;
        const float v = x[at[0] * from.slice + at[1] * from.row + at[2]];
        ++live, sum += v, highest = std::max<double>(highest, v), nan = nan || std::isnan(v);
      }
  if (!w.average) return nan ? kNan : highest;
  const int64_t divisor = w.count_padding ? padded : live;
  return divisor ? sum / static_cast<double>(divisor) : 0;
}

void check_pool(const Pool& p, Against against, Random& random) {
  const PoolWindow& w = p.window;
  const Planes from = planes(p.size[0], p.size[1], p.size[2], random);
  const Planes to = planes(p.out(0), p.out(1), p.out(2), random);
  int at = std::snprintf(running, sizeof running, "%s pool average=%d count_padding=%d",
                         isa_name(current_isa()), w.average, w.count_padding);
  for (int axis = 0; axis < 3; ++axis)
    at += std::snprintf(running + at, sizeof running - static_cast<size_t>(at),
                        " [%d k=%d s=%d p=%d d=%d end=%d -> %d]", static_cast<int>(p.size[axis]),
                        static_cast<int>(w.kernel[axis]), static_cast<int>(w.stride[axis]),
                        static_cast<int>(w.before[axis]), static_cast<int>(w.dilation[axis]),
                        static_cast<int>(w.padded_end[axis]), static_cast<int>(p.out(axis)));
  std::vector<float> x(static_cast<size_t>(from.flat()), kNan);  // what is between the rows
  const double odd = random.pick({0, 0, 1}) ? .05 : 0;
  for (int64_t d = 0; d < from.depth; ++d)
    for (int64_t h = 0; h < from.height; ++h)
      for (int64_t i = 0; i < from.width; ++i) {
        const float special = random.pick({0, 1}) ? kNan : random.pick({0, 1}) ? kInf : -kInf;
        x[d * from.slice + h * from.row + i] = random.share() < odd ? special : random.normal();
      }
  std::vector<double> expected(static_cast<size_t>(to.plane));
  for (int64_t d = 0; d < to.depth; ++d)
    for (int64_t h = 0; h < to.height; ++h)
      for (int64_t i = 0; i < to.width; ++i) {
        const int64_t o[3] = {d, h, i};
        expected[to.lead + d * to.slice + h * to.row + i] = window_at(p, from, x.data(), o);
      }
  const int64_t after = w.padded_end[2] - from.width - w.before[2];
  const int64_t floats = from.width + 2 * std::max(w.before[2], after) + 64;
  const Guarded<float> y(std::vector<float>(expected.size(), 7.f), against);
  const Guarded in(x, against);
  const Guarded<float> scratch(std::vector<float>(static_cast<size_t>((floats + 15) / 16 * 16)),
                               against);
  plane_kernels().pool(in.read_only(), from, w, to, y.data() + to.lead, scratch.data());
  expect(y.surroundings_intact() && scratch.surroundings_intact(), "wrote outside");
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = expected[i];
    const bool same = std::isnan(e)   ? std::isnan(y[i])
                      : std::isinf(e) ? y[i] == static_cast<float>(e)
                                      : std::abs(y[i] - e) <= (w.average ? 1e-5 : 0);
    if (same) continue;
    return expect(false, "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) + ", not " +
                             std::to_string(e));
  }
  expect(true, "");
}

// Element i of n outputs is the mean of those from floor(i * size / n) to ceil((i + 1) * size / n).
void check_adaptive(Against against, Random& random) {
  const auto any = [&](int64_t widest) {
    return planes(random.integer(1, 3), random.integer(1, 9), random.integer(1, widest), random);
  };
  const Planes from = any(90), to = any(40);
  std::snprintf(
      running, sizeof running, "%s adaptive %d x %d x %d -> %d x %d x %d", isa_name(current_isa()),
      static_cast<int>(from.depth), static_cast<int>(from.height), static_cast<int>(from.width),
      static_cast<int>(to.depth), static_cast<int>(to.height), static_cast<int>(to.width));
  std::vector<float> x(static_cast<size_t>(from.flat()), kNan);  // what is between the rows
  for (int64_t d = 0; d < from.depth; ++d)
    for (int64_t h = 0; h < from.height; ++h)
      for (int64_t i = 0; i < from.width; ++i)
        x[d * from.slice + h * from.row + i] = random.normal();
  std::vector<double> expected(static_cast<size_t>(to.plane));
  const auto begin = [](int64_t o, int64_t outputs, int64_t size) { return o * size / outputs; };
  const auto end = [](int64_t o, int64_t outputs, int64_t size) {
    return ((o + 1) * size + outputs - 1) / outputs;
  };
  for (int64_t d = 0; d < to.depth; ++d)
    for (int64_t h = 0; h < to.height; ++h)
      for (int64_t i = 0; i < to.width; ++i) {
        double sum = 0, count = 0;
        for (int64_t a = begin(d, to.depth, from.depth); a < end(d, to.depth, from.depth); ++a)
          for (int64_t b = begin(h, to.height, from.height); b < end(h, to.height, from.height);
               ++b)
            for (int64_t c = begin(i, to.width, from.width); c < end(i, to.width, from.width); ++c)
              sum += x[a * from.slice + b * from.row + c], ++count;
        expected[to.lead + d * to.slice + h * to.row + i] = sum / count;
      }
  const Guarded<float> y(std::vector<float>(expected.size(), 7.f), against);
  const Guarded in(x, against);
  const Guarded<float> scratch(std::vector<float>(static_cast<size_t>(from.width + 31) / 16 * 16),
                               against);
  plane_kernels().adaptive(in.read_only(), from, to, y.data() + to.lead, scratch.data());
  expect(scratch.surroundings_intact(), "wrote outside the scratch");
  expect(y.surroundings_intact(), "wrote outside y");
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(y[i] - expected[i]) <= 1e-5))
      return expect(false, "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) + ", not " +
                               std::to_string(expected[i]));
  expect(true, "");
}

// Every element `times` times.
void check_nearest(Against against, Random& random) {
  const Planes from =
      planes(random.integer(1, 3), random.integer(1, 7), random.integer(1, 40), random);
  const int64_t times[3] = {random.integer(1, 2), random.integer(1, 3),
                            random.pick({1, 2, 2, 3, 4, 5, 8, 16, 17})};
  const Planes to =
      planes(from.depth * times[0], from.height * times[1], from.width * times[2], random);
  std::snprintf(running, sizeof running, "%s nearest %d x %d x %d, times %d x %d x %d",
                isa_name(current_isa()), static_cast<int>(from.depth),
                static_cast<int>(from.height), static_cast<int>(from.width),
                static_cast<int>(times[0]), static_cast<int>(times[1]), static_cast<int>(times[2]));
  std::vector<float> x(static_cast<size_t>(from.flat() + 16), kNan);  // read behind a row
  for (int64_t d = 0; d < from.depth; ++d)
    for (int64_t h = 0; h < from.height; ++h)
      for (int64_t i = 0; i < from.width; ++i)
        x[d * from.slice + h * from.row + i] = random.normal();
  std::vector<float> expected(static_cast<size_t>(to.plane));
  for (int64_t d = 0; d < to.depth; ++d)
    for (int64_t h = 0; h < to.height; ++h)
      for (int64_t i = 0; i < to.width; ++i)
        expected[to.lead + d * to.slice + h * to.row + i] =
            x[d / times[0] * from.slice + h / times[1] * from.row + i / times[2]];
  const Guarded<float> y(std::vector<float>(expected.size(), 7.f), against);
  const Guarded in(x, against);
  plane_kernels().nearest(in.read_only(), from, times, to, y.data() + to.lead);
  expect(y.surroundings_intact(), "wrote outside y");
  expect(std::equal(expected.begin(), expected.end(), y.data()), "another element");
}

Pool image(int64_t height, int64_t width, int64_t kernel, int64_t stride, int64_t padding,
           int64_t dilation, bool average, bool count_padding, bool ceil) {
  return {{1, height, width},
          {{1, kernel, kernel},
           {1, stride, stride},
           {0, padding, padding},
           {1, dilation, dilation},
           average,
           count_padding,
           {1, height + 2 * padding, width + 2 * padding}},
          ceil};
}

Pool any_pool(Random& random) {
  Pool p{};
  p.ceil = random.integer(0, 1);
  p.window.average = random.integer(0, 1);
  p.window.count_padding = random.integer(0, 1);
  const int64_t first = random.integer(0, 2);  // 3 dimensions, 2 or 1
  for (int axis = 0; axis < 3; ++axis) {
    const bool flat = axis < first;
    p.size[axis] = flat ? 1 : random.integer(1, axis == 2 ? 90 : 9);
    const int64_t kernel = flat ? 1 : random.integer(1, axis == 2 ? 9 : 4);
    p.window.kernel[axis] = kernel;
    p.window.stride[axis] = flat ? 1 : random.pick({1, 2, 2, 3, 7, 100});
    p.window.dilation[axis] = flat || p.window.average ? 1 : random.pick({1, 1, 2, 30});
    p.window.before[axis] = flat ? 0 : random.integer(0, kernel / 2);
    p.window.padded_end[axis] =
        p.size[axis] + p.window.before[axis] + (flat ? 0 : random.integer(0, kernel / 2));
  }
  return p;
}

}  // namespace

void check_pools(int64_t count, Random& random) {
  for (const Against against : {Against::low_page, Against::high_page}) {
    for (int64_t i = 0; i < 10 * count; ++i)
      check_adaptive(against, random), check_nearest(against, random);
    for (const int64_t width : {1, 2, 7, 8, 14, 15, 16, 17, 28, 31, 32, 33, 55, 56, 112})
      for (const bool average : {false, true})
        for (const bool count_padding : {false, true})
          for (const bool ceil : {false, true})
            for (const auto& [k, s, p, d] : {std::array{3, 2, 1, 1},
                                             {2, 2, 0, 1},
                                             {3, 1, 1, 1},
                                             {5, 1, 2, 1},
                                             {3, 2, 0, 1},
                                             {1, 2, 0, 1},
                                             {7, 7, 0, 1},
                                             {3, 3, 1, 1},
                                             {3, 1, 1, 2},
                                             {2, 2, 1, 3}}) {
              const Pool pool = image(std::min<int64_t>(width, 9), width, k, s, p, d, average,
                                      count_padding, ceil);
              if (pool.possible()) check_pool(pool, against, random);
            }
    for (int64_t i = 0; i < 10 * count;) {
      const Pool pool = any_pool(random);
      if (!pool.possible()) continue;
      check_pool(pool, against, random);
      ++i;
    }
  }
}
