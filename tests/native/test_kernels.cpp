// Every instruction set that this CPU has, every layout, over random problems and odd sizes:
// against a double reference, on arrays between guard pages, from real threads.
//   test_kernels [random problems of each kind, default 60] [seed, default 1]
#include <signal.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "kernels/cpu/bitmask_layers.h"
#include "kernels/cpu/csr_layers.h"
#include "kernels/cpu/sell_layers.h"
#include "kernels/cpu/table.h"
#include "program/conv.h"

using namespace sparseprune;

namespace {

struct sigaction fault_before;

void report_fault(int) {
  for (const char* text : {"FAULT in ", static_cast<const char*>(running), "\n"}) {
    const ssize_t written = write(STDERR_FILENO, text, std::strlen(text));
    (void)written;
  }
  sigaction(SIGSEGV, &fault_before, nullptr);  // the access faults again, now for good
}

// Calls run(weight) with the packed weight between guard pages, in all three layouts.
template <typename Run>
void with_layouts(const Dense& dense, int64_t block, int64_t bound_rows, Against against,
                  const char* label, const Run& run) {
  const auto name = [&](const char* layout) {
    std::snprintf(running, sizeof running, "%s %s block=%d %s", isa_name(current_isa()), layout,
                  static_cast<int>(block), label);
  };
  {
    name("rows");
    const Packed p = pack_rows(dense);
    const Guarded values(p.values, against);
    const Guarded columns(p.wide_columns, against);
    const Guarded starts(p.starts, against);
    run(CsrRows{values.read_only(), columns.read_only(), starts.read_only(), dense.rows,
                dense.cols});
  }
  const auto run_blocks = [&](auto w, int64_t bound, const Packed& p) {
    if (bound_rows % bound) return;
    const Guarded values(p.values, against);
    const Guarded columns(p.columns, against);
    const Guarded counts(p.counts, against);
    const Guarded starts(p.starts, against);
    w.values = values.read_only();
    w.columns = columns.read_only();
    w.counts = counts.read_only();
    w.starts = starts.read_only();
    w.rows = dense.rows;
    w.cols = dense.cols;
    w.block = block;
    run(w);
  };
  CsrGroups groups{};
  name("groups");
  run_blocks(groups, CsrGroups::kRows, pack_groups(dense, block));
  name("numbered groups");
  groups.cell = CsrGroups::kNumbered;
  if (dense.rows % CsrGroups::kSegment == 0)
    run_blocks(groups, CsrGroups::kSegment, pack_numbered(dense, block));
  name("sorted");
  run_blocks(CsrSorted{}, CsrSorted::kRows, pack_sorted(dense, block));
}

// y from one thread and from three must be near the reference and bit-equal.
template <typename W, typename Call>
void check_weight(const W& w, Against against, const Expected& expected, const Call& call) {
  const std::vector<float> unwritten(expected.y.size(), std::numeric_limits<float>::quiet_NaN());
  const Guarded<float> first(unwritten, against), second(unwritten, against);
  call(w, against, first.data(), real_threads(1));
  compare(first, expected);
  call(w, against, second.data(), real_threads(3));
  compare(second, expected);
  expect(std::memcmp(first.data(), second.data(), 4 * unwritten.size()) == 0,
         "three threads gave other bits than one");
}

template <typename Call>
void check_layouts(const Dense& dense, int64_t block, int64_t bound_rows, const char* label,
                   const Expected& expected, const Call& call) {
  for (const Against against : {Against::low_page, Against::high_page})
    with_layouts(dense, block, bound_rows, against, label,
                 [&](const auto& w) { check_weight(w, against, expected, call); });
}

template <typename Call>
void check_bitmask(const Dense& dense, const char* label, const Expected& expected,
                   const Call& call) {
  std::snprintf(running, sizeof running, "%s bitmask %s", isa_name(current_isa()), label);
  const Packed p = pack_bitmask(dense);
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded values(p.values, against);
    const Guarded masks(p.masks, against);
    const Guarded starts(p.starts, against);
    const Bitmask w{values.read_only(), masks.read_only(), starts.read_only(), dense.rows,
                    dense.cols};
    check_weight(w, against, expected, call);
  }
}

template <typename Call>
void check_sell(const Dense& dense, const char* label, const Expected& expected, const Call& call) {
  std::snprintf(running, sizeof running, "%s sell %s", isa_name(current_isa()), label);
  for (const bool ordered : {false, true})
    for (const Against against : {Against::low_page, Against::high_page}) {
      const Packed p = pack_sell(dense, ordered);
      const Guarded values(p.values, against);
      const Guarded columns(p.columns, against);
      const Guarded windows(p.windows, against);
      const Guarded starts(p.starts, against);
      const Guarded order(p.order, against);
      const Sell w{values.read_only(),
                   columns.read_only(),
                   windows.read_only(),
                   starts.read_only(),
                   ordered ? order.read_only() : nullptr,
                   dense.rows,
                   dense.cols};
      check_weight(w, against, expected, call);
    }
}

void linear(const Sell& w, const float* x, int64_t tokens, const float* bias, float* y,
            const Threads& threads, Clamp clamp) {
  sell_linear(w, x, tokens, bias, y, threads, clamp);
}
void linear(const Bitmask& w, const float* x, int64_t tokens, const float* bias, float* y,
            const Threads& threads, Clamp clamp) {
  bitmask_linear(w, x, tokens, bias, y, threads, clamp);
}
template <typename W>
void linear(const W& w, const float* x, int64_t tokens, const float* bias, float* y,
            const Threads& threads, Clamp clamp) {
  csr_linear(w, x, tokens, bias, y, threads, clamp);
}

// With a bias, outputs are clamped too; the reference follows.
Clamp clamp_of(bool has_bias) { return has_bias ? Clamp{-.5f, .75f} : Clamp{}; }

double clamped(double v, bool has_bias) {
  const Clamp c = clamp_of(has_bias);
  return std::min<double>(std::max<double>(v, c.low), c.high);
}

struct Linear {
  int64_t rows, cols, tokens, block;
  bool has_bias;
};

void check_linear(const Linear& p, Random& random) {
  const Dense dense = random.dense(p.rows, p.cols);
  const std::vector<float> x = random.normals(p.tokens * p.cols), bias = random.normals(p.rows);
  Expected expected;
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int64_t r = 0; r < p.rows; ++r) {
      double sum = p.has_bias ? bias[r] : 0., scale = std::abs(sum);
      for (int64_t c = 0; c < p.cols; ++c) {
        const double product = double{dense.at(r, c)} * x[t * p.cols + c];
        sum += product, scale += std::abs(product);
      }
      expected.y.push_back(clamped(sum, p.has_bias)), expected.scale.push_back(scale);
    }
  char label[128];
  std::snprintf(label, sizeof label, "linear rows=%d cols=%d tokens=%d bias=%d",
                static_cast<int>(p.rows), static_cast<int>(p.cols), static_cast<int>(p.tokens),
                p.has_bias);
  const auto call = [&](const auto& w, Against against, float* y, const Threads& threads) {
    const Guarded guarded_x(x, against), guarded_bias(bias, against);
    const float* b = p.has_bias ? guarded_bias.read_only() : nullptr;
    linear(w, guarded_x.read_only(), p.tokens, b, y, threads, clamp_of(b));
  };
  check_layouts(dense, p.block, CsrSorted::kRows, label, expected, call);
  check_bitmask(dense, label, expected, call);
  check_sell(dense, label, expected, call);
}

Expected reference(const Conv2dShape& s, const Dense& w, const std::vector<float>& x,
                   const float* bias) {
  Expected expected;
  const int64_t channels = s.channels / s.groups;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t oy = 0; oy < s.out_height(); ++oy)
        for (int64_t ox = 0; ox < s.out_width(); ++ox) {
          double sum = bias ? bias[r] : 0., scale = std::abs(sum);
          for (int64_t c = 0; c < channels; ++c)
            for (int64_t ky = 0; ky < s.kernel_h; ++ky)
              for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
                const int64_t iy = oy * s.stride_h + ky * s.dilation_h - s.padding_h;
                const int64_t ix = ox * s.stride_w + kx * s.dilation_w - s.padding_w;
                if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
                const int64_t channel = r / (s.rows / s.groups) * channels + c;
                const float value = x[((b * s.channels + channel) * s.height + iy) * s.width + ix];
                const double product =
                    double{w.at(r, (c * s.kernel_h + ky) * s.kernel_w + kx)} * value;
                sum += product, scale += std::abs(product);
              }
          expected.y.push_back(clamped(sum, bias)), expected.scale.push_back(scale);
        }
  return expected;
}

void check_conv2d(const Conv2dShape& s, int64_t block, bool has_bias, Random& random) {
  const Dense dense = random.dense(s.rows, s.channels / s.groups * s.kernel_h * s.kernel_w);
  const std::vector<float> x = random.normals(s.batch * s.channels * s.height * s.width);
  const std::vector<float> bias = random.normals(s.rows);
  const Expected expected = reference(s, dense, x, has_bias ? bias.data() : nullptr);
  const auto i = [](int64_t n) { return static_cast<int>(n); };
  char label[256];
  std::snprintf(label, sizeof label,
                "conv2d x=%dx%dx%dx%d rows=%d kernel=%dx%d stride=%dx%d padding=%dx%d "
                "dilation=%dx%d groups=%d bias=%d",
                i(s.batch), i(s.channels), i(s.height), i(s.width), i(s.rows), i(s.kernel_h),
                i(s.kernel_w), i(s.stride_h), i(s.stride_w), i(s.padding_h), i(s.padding_w),
                i(s.dilation_h), i(s.dilation_w), i(s.groups), has_bias);
  const int64_t bound_rows = s.groups == 1 ? int64_t{CsrSorted::kRows} : s.rows / s.groups;
  check_layouts(dense, block, bound_rows, label, expected,
                [&](const auto& w, Against against, float* y, const Threads& threads) {
                  const Guarded guarded_x(x, against), guarded_bias(bias, against);
                  const float* b = has_bias ? guarded_bias.read_only() : nullptr;
                  csr_conv2d(w, guarded_x.read_only(), s, b, y, threads, clamp_of(b));
                });
}

int64_t random_block(Random& random) {
  return random.pick({1, 7, 16, 100, 192, 255, random.integer(1, CsrGroups::kMaxBlock)});
}

void check_linears(int64_t count, Random& random) {
  for (int64_t tokens : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129})
    check_linear({random.pick({1, 3, 4, 5, 37}), random.pick({1, 15, 17, 200}), tokens,
                  random_block(random), true},
                 random);
  for (int64_t rows : {1, 8, 15, 16, 17, 32, 47, 48, 49, 63, 64, 65, 80, 129})
    for (int64_t tokens : {1, 2, 3, 4})
      check_linear({rows, random.pick({1, 33}), tokens, random_block(random), true}, random);
  for (int64_t rows : {1, 2, 3, 4, 5, 127, 128, 129, 257})
    check_linear({rows, 33, 21, random_block(random), false}, random);
  for (int64_t cols : {1, 2, 15, 16, 17, 255, 256, 257, 511})
    check_linear({9, cols, 21, CsrGroups::kMaxBlock, true}, random);
  for (int64_t rows : {64, 128, 192, 320})
    check_linear({rows, 200, random.pick({21, 70}), random_block(random), true}, random);
  check_linear({700, 300, 4, 200, true}, random);  // large enough for threads
  check_linear({260, 300, 70, 150, true}, random);
  for (int64_t i = 0; i < count; ++i)
    check_linear({random.integer(1, 150), random.integer(1, 300), random.integer(1, 70),
                  random_block(random), random.integer(0, 1) == 1},
                 random);
}

void check_convs(int64_t count, Random& random) {
  check_conv2d({1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1}, 1, true, random);
  check_conv2d({70, 3, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 5}, 3, true, random);
  check_conv2d({2, 16, 25, 27, 3, 3, 1, 1, 1, 1, 1, 1, 1, 24}, 144, true, random);
  check_conv2d({1, 64, 25, 25, 3, 3, 1, 1, 1, 1, 1, 1, 64, 256}, 9, true, random);
  check_conv2d({1, 6, 9, 11, 3, 3, 1, 1, 1, 1, 1, 1, 3, 192}, 7, true, random);
  check_conv2d({2, 4, 9, 11, 3, 3, 1, 1, 1, 1, 1, 1, 1, 192}, 16, true, random);
  for (int64_t i = 0; i < count;) {
    const int64_t groups = random.pick({1, 1, 2, 3, 8});
    const Conv2dShape s{random.integer(1, 3),
                        groups * random.integer(1, 5),
                        random.integer(1, 14),
                        random.integer(1, 40),
                        random.integer(1, 7),
                        random.integer(1, 7),
                        random.integer(1, 3),
                        random.integer(1, 3),
                        random.integer(0, 4),
                        random.integer(0, 4),
                        random.integer(1, 2),
                        random.integer(1, 2),
                        groups,
                        groups * random.pick({1, 2, 4, 8, 12})};
    if (s.height + 2 * s.padding_h <= s.dilation_h * (s.kernel_h - 1)) continue;
    if (s.width + 2 * s.padding_w <= s.dilation_w * (s.kernel_w - 1)) continue;
    check_conv2d(s, random_block(random), random.integer(0, 1) == 1, random);
    ++i;
  }
}

bool refused(const char* isa) {
  try {
    force_isa(isa);
    return false;
  } catch (const std::runtime_error& error) {
    return std::strstr(error.what(), isa) != nullptr;
  }
}

void check_isa() {
  std::snprintf(running, sizeof running, "isa");
  expect(refused("sse9"), "an unknown level must be refused by name");
  for (const KernelRow& row : kernel_table())
    expect(
        refused(isa_name(row.isa)) == (row.isa > detected_isa()),
        std::string("a level that the CPU has, and no other, can be forced: ") + isa_name(row.isa));
  setenv("SPARSEPRUNE_ISA", "scalar", 1);
  force_isa("");
  expect(current_isa() == Isa::scalar, "\"\" returns to SPARSEPRUNE_ISA");
  unsetenv("SPARSEPRUNE_ISA");
  force_isa("");
  expect(current_isa() == detected_isa(), "without SPARSEPRUNE_ISA the best level is used");
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t count = argc > 1 ? std::atol(argv[1]) : 60;
  const auto seed = static_cast<uint32_t>(argc > 2 ? std::atol(argv[2]) : 1);
  struct sigaction fault{};
  fault.sa_handler = report_fault;
  sigaction(SIGSEGV, &fault, &fault_before);
  check_isa();
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (isa > detected_isa()) continue;
    force_isa(isa_name(isa));
    Random random(seed);
    const int before = checked;
    check_linears(count, random);
    check_convs(count, random);
    check_few_tokens(count, random);
    check_block(count, random);
    check_nm(count, random);
    check_dense(count, random);
    check_planes(count, random);
    check_sequences(count, random);
    check_programs(count, random);
    check_innermost(count, random);
    std::printf("%s: %d checks\n", isa_name(isa), checked - before);
  }
  Random random(seed);
  check_mma_fragments();
  check_block_tiles(random);
  check_nm_tiles(random);
  check_bitmask_warps(random);
  check_csr_warps(random);
  std::printf("%d of %d checks failed\n", failures, checked);
  return failures != 0;
}
