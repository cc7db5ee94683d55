// The CUDA kernels of csr in every layout, compiled for the CPU (cuda_on_cpu.h), against plain
// loops.
#include "check.h"
#include "cuda_on_cpu.h"
#include "kernels/cuda/csr_layouts.cuh"

// What device code declares as extern __shared__.
namespace sparseprune::csr {
alignas(16) float totals[kWarpsPerBlock * CsrSorted::kRows];
}  // namespace sparseprune::csr

namespace {

using namespace sparseprune;

// Whole numbers, so that sums are exact in any order.
std::vector<float> numbers(Random& random, int64_t count, double density) {
  std::vector<float> v(static_cast<size_t>(count));
  for (float& each : v)
    if (random.share() < density) each = static_cast<float>(random.integer(-9, 9));
  return v;
}

void check_same(const std::vector<float>& y, const std::vector<float>& expected) {
  for (size_t i = 0; i < y.size(); ++i)
    expect(y[i] == expected[i], "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) +
                                    ", not " + std::to_string(expected[i]));
}

float limit(double v, Clamp clamp) {
  return std::min(std::max(static_cast<float>(v), clamp.low), clamp.high);
}

const Clamp kClamp{-60.f, 90.f};

template <typename W, typename Access>
void launch(const W& w, const Access& access, int64_t tokens, const float* bias) {
  cuda_on_cpu::launch(2, 2 * csr::kLanes, cuda_on_cpu::Arrival::at_once,
                      [&] { csr::multiply(w, access, tokens, bias, kClamp); });
}

// Calls body(name, W) with the weight between guard pages; only "rows" knows groups of a
// convolution that have a few rows.
template <typename Body>
void in_every_layout(const Dense& w, int64_t block, bool groups_too, const Body& body) {
  const Packed rows = pack_rows(w);
  const Guarded<float> values(rows.values, Against::high_page);
  const Guarded<uint16_t> columns(rows.wide_columns, Against::high_page);
  const Guarded<int32_t> starts(rows.starts, Against::high_page);
  body("rows",
       CsrRows{values.read_only(), columns.read_only(), starts.read_only(), w.rows, w.cols});
  if (!groups_too) return;
  const auto packed = [&](const char* name, const Packed& p, auto view) {
    const Guarded<float> of(p.values, Against::high_page);
    const Guarded<uint8_t> at(p.columns, Against::high_page), counts(p.counts, Against::high_page);
    const Guarded<int32_t> cells(p.starts, Against::high_page);
    view.values = of.read_only(), view.columns = at.read_only(), view.counts = counts.read_only();
    view.starts = cells.read_only(), view.rows = w.rows, view.cols = w.cols, view.block = block;
    body(name, view);
  };
  packed("groups", pack_groups(w, block), CsrGroups{});
  CsrGroups numbered{};
  numbered.cell = CsrGroups::kNumbered;
  if (w.rows % CsrGroups::kSegment == 0)
    packed("numbered groups", pack_numbered(w, block), numbered);
  packed("sorted", pack_sorted(w, block), CsrSorted{});
}

void check_linear(Random& random, int64_t rows, int64_t cols, int64_t tokens, double density) {
  const Dense w{rows, cols, numbers(random, rows * cols, density)};
  const std::vector<float> bias = numbers(random, rows, 1),
                           data = numbers(random, tokens * cols, 1);
  const Guarded<float> x(data, Against::high_page);
  std::vector<float> expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      double sum = bias[r];
      for (int64_t c = 0; c < cols; ++c) sum += double{w.at(r, c)} * data[t * cols + c];
      expected.push_back(limit(sum, kClamp));
    }
  in_every_layout(w, 24, true, [&](const char* name, const auto& packed) {
    std::snprintf(running, sizeof running, "csr kernel, %s, %dx%d of %d tokens", name,
                  static_cast<int>(rows), static_cast<int>(cols), static_cast<int>(tokens));
    std::vector<float> y(expected.size(), 12345.f);
    launch(packed, csr::LinearAccess{x.read_only(), y.data(), cols, rows}, tokens, bias.data());
    check_same(y, expected);
  });
}

void check_conv2d(Random& random, const Conv2dShape& s) {
  const int64_t channels = s.channels / s.groups, tall = s.rows / s.groups;
  const int64_t cols = channels * s.kernel_h * s.kernel_w;
  const Dense w{s.rows, cols, numbers(random, s.rows * cols, .3)};
  const std::vector<float> data = numbers(random, s.batch * s.channels * s.height * s.width, 1);
  const Guarded<float> x(data, Against::high_page);
  std::vector<float> expected;
  for (int64_t image = 0; image < s.batch; ++image)
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t oy = 0; oy < s.out_height(); ++oy)
        for (int64_t ox = 0; ox < s.out_width(); ++ox) {
          double sum = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const int64_t kx = c % s.kernel_w, ky = c / s.kernel_w % s.kernel_h;
            const int64_t i = oy * s.stride_h + ky * s.dilation_h - s.padding_h;
            const int64_t j = ox * s.stride_w + kx * s.dilation_w - s.padding_w;
            if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
            const int64_t channel = r / tall * channels + c / (s.kernel_h * s.kernel_w);
            sum += double{w.at(r, c)} *
                   data[((image * s.channels + channel) * s.height + i) * s.width + j];
          }
          expected.push_back(limit(sum, kClamp));
        }
  in_every_layout(w, 24, s.groups == 1, [&](const char* name, const auto& packed) {
    std::snprintf(running, sizeof running, "csr conv2d kernel, %s, %d groups", name,
                  static_cast<int>(s.groups));
    std::vector<float> y(expected.size(), 12345.f);
    const csr::ConvAccess access{x.read_only(), y.data(), s, s.out_height(), s.out_width()};
    launch(packed, access, s.batch * s.out_height() * s.out_width(), nullptr);
    check_same(y, expected);
  });
}

}  // namespace

void check_csr_layouts(Random& random) {
  check_linear(random, 70, 50, 3, .4);
  check_linear(random, 128, 30, 1, 1.);
  check_linear(random, 131, 24, 1, .6);
  check_linear(random, 9, 97, 2, .1);
  check_linear(random, 3, 0, 2, 1.);
  check_conv2d(random, {2, 3, 7, 6, 3, 2, 2, 1, 1, 0, 1, 2, 1, 10});
  check_conv2d(random, {1, 4, 5, 9, 3, 3, 1, 2, 2, 1, 2, 1, 2, 6});
}
