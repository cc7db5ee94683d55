// Whole layers with an n:m weight on the CPU, for the current instruction set.
#include <limits>

#include "check.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/nm_layers.h"

namespace {

using namespace sparseprune;

struct Problem {
  int64_t rows, cols, n, m, tokens;
  bool has_bias;
};

Expected expected_linear(const Dense& w, const std::vector<float>& x, const float* bias,
                         int64_t tokens, Clamp clamp) {
  Expected expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t row = 0; row < w.rows; ++row) {
      double sum = bias ? bias[row] : 0., scale = std::abs(sum);
      for (int64_t col = 0; col < w.cols; ++col) {
        const double product = double{w.at(row, col)} * x[t * w.cols + col];
        sum += product, scale += std::abs(product);
      }
      expected.y.push_back(std::min<double>(std::max<double>(sum, clamp.low), clamp.high));
      expected.scale.push_back(scale);
    }
  return expected;
}

void check_linear(Random& random, const Problem& p) {
  const Dense dense = thinned(random.dense(p.rows, p.cols), p.n, p.m);
  const std::vector<float> x = random.normals(p.tokens * p.cols), bias = random.normals(p.rows);
  const Clamp clamp = p.has_bias ? Clamp{-.5f, .75f} : Clamp{};
  std::snprintf(running, sizeof running, "%s nm %d:%d linear %dx%d, %d tokens, bias %d",
                isa_name(current_isa()), static_cast<int>(p.n), static_cast<int>(p.m),
                static_cast<int>(p.rows), static_cast<int>(p.cols), static_cast<int>(p.tokens),
                p.has_bias);
  const Expected expected =
      expected_linear(dense, x, p.has_bias ? bias.data() : nullptr, p.tokens, clamp);
  const Packed packed = pack_nm(dense, p.n, p.m);
  const std::vector<float> unwritten(expected.y.size(), std::numeric_limits<float>::quiet_NaN());
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded values(packed.values, against), guarded_x(x, against);
    const Guarded guarded_bias(bias, against);
    const Guarded places(packed.places, against);
    const Nm<float> w{values.read_only(), places.read_only(), p.rows, p.cols, p.n, p.m};
    const Guarded<float> first(unwritten, against), second(unwritten, against);
    const float* b = p.has_bias ? guarded_bias.read_only() : nullptr;
    nm_linear(w, guarded_x.read_only(), p.tokens, b, first.data(), real_threads(1), clamp);
    compare(first, expected);
    nm_linear(w, guarded_x.read_only(), p.tokens, b, second.data(), real_threads(3), clamp);
    expect(std::memcmp(first.data(), second.data(), 4 * unwritten.size()) == 0,
           "three threads gave other bits than one");
  }
}

}  // namespace

void check_nm(int64_t count, Random& random) {
  for (int64_t tokens : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 130})
    check_linear(random, {37, 150, 2, 4, tokens, true});
  for (int64_t cols : {1, 3, 4, 5, 31, 32, 33, 35, 63, 64, 127, 128, 129, 131, 260})
    for (int64_t tokens : {1, 9}) check_linear(random, {9, cols, 2, 4, tokens, false});
  for (const auto& [n, m] : {std::pair{1, 2}, {1, 4}, {3, 4}, {2, 5}, {4, 8}, {7, 9}, {15, 16}})
    for (int64_t tokens : {1, 4, 21}) check_linear(random, {12, 101, n, m, tokens, true});
  check_linear(random, {300, 500, 2, 4, 70, true});  // large enough for threads
  check_linear(random, {300, 500, 2, 4, 3, true});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t m = random.integer(2, 16);
    const bool pairs = random.integer(0, 1) == 1;
    check_linear(random, {random.integer(1, 150), random.integer(1, 300),
                          pairs ? 2 : random.integer(1, m - 1), pairs ? 4 : m,
                          random.integer(1, 70), random.integer(0, 1) == 1});
  }
}
