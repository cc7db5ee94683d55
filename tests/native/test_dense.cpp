// The kernels of weights that stay dense, against a double reference, on arrays between guard
// pages.
#include "check.h"
#include "kernels/cpu/table.h"

using namespace sparseprune;

namespace {

constexpr Clamp kClamp{-.5f, .75f};

void name(const char* kernel, const Dense& w, int64_t tokens) {
  std::snprintf(running, sizeof running, "%s dense %s rows=%d cols=%d tokens=%d",
                isa_name(current_isa()), kernel, static_cast<int>(w.rows), static_cast<int>(w.cols),
                static_cast<int>(tokens));
}

// y [tokens, rows] of x [tokens, cols]; clamped where there is a bias.
Expected products(const Dense& w, const std::vector<float>& x, int64_t tokens, const float* bias) {
  Expected expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < w.rows; ++r) {
      double sum = bias ? bias[r] : 0., scale = std::abs(sum);
      for (int64_t c = 0; c < w.cols; ++c) {
        const double product = double{w.at(r, c)} * x[t * w.cols + c];
        sum += product, scale += std::abs(product);
      }
      if (bias) sum = std::min<double>(std::max<double>(sum, kClamp.low), kClamp.high);
      expected.y.push_back(sum), expected.scale.push_back(scale);
    }
  return expected;
}

// Rows in two calls, as from two threads.
void check_dots(const Dense& w, int64_t tokens, bool has_bias, Random& random) {
  name("dots", w, tokens);
  const std::vector<float> x = random.normals(tokens * w.cols), bias = random.normals(w.rows);
  const Expected expected = products(w, x, tokens, has_bias ? bias.data() : nullptr);
  const int64_t middle = random.integer(0, w.rows);
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded<float> weights(w.weights, against), in(x, against), add(bias, against);
    const Guarded<float> y(std::vector<float>(expected.y.size()), against);
    const DenseMatrix matrix{weights.read_only(), w.rows, w.cols};
    for (const auto& [begin, end] : {std::pair{int64_t{0}, middle}, std::pair{middle, w.rows}})
      dense_kernels().dots(matrix, in.read_only(), tokens, w.cols,
                           has_bias ? add.read_only() : nullptr, y.data(), w.rows, begin, end,
                           has_bias ? kClamp : Clamp{});
    compare(y, expected);
  }
}

// Sums [rows, lanes] of a panel [cols, lanes], block of columns by block.
void check_panels(const Dense& w, int vectors, Random& random) {
  const int64_t lanes = vectors * panel_kernels().width;
  name("panels", w, lanes);
  const std::vector<float> panel = random.normals(w.cols * lanes);
  const std::vector<float> before = random.normals(w.rows * lanes);
  Expected expected;
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      double sum = before[r * lanes + lane], scale = std::abs(sum);
      for (int64_t c = 0; c < w.cols; ++c) {
        const double product = double{w.at(r, c)} * panel[c * lanes + lane];
        sum += product, scale += std::abs(product);
      }
      expected.y.push_back(sum), expected.scale.push_back(scale);
    }
  const int64_t block = random.integer(1, w.cols), middle = random.integer(0, w.rows);
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded<float> weights(w.weights, against), in(panel, against), acc(before, against);
    const DenseMatrix matrix{weights.read_only(), w.rows, w.cols};
    for (int64_t col = 0; col < w.cols; col += block)
      for (const auto& [begin, end] : {std::pair{int64_t{0}, middle}, std::pair{middle, w.rows}})
        dense_kernels().panels(matrix, col, std::min(block, w.cols - col),
                               in.read_only() + col * lanes, vectors, acc.data() + begin * lanes,
                               begin, end);
    compare(acc, expected);
  }
}

}  // namespace

void check_dense(int64_t count, Random& random) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t rows = random.pick({1, 3, 4, 5, 16, 33, random.integer(1, 120)});
    const int64_t cols = random.pick({1, 15, 16, 17, 64, random.integer(1, 300)});
    const Dense w = random.dense(rows, cols);
    check_dots(w, random.pick({1, 2, 3, 4, 5, 9, 12}), random.integer(0, 1) == 1, random);
    check_panels(w, static_cast<int>(random.integer(1, panel_kernels().max_vectors)), random);
  }
}
