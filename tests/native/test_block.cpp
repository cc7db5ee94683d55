// Whole layers with a block weight on the CPU, for the current instruction set.
#include <limits>

#include "check.h"
#include "kernels/cpu/block_layers.h"
#include "kernels/cpu/isa.h"

namespace {

using namespace sparseprune;

void check_linear(Random& random, int64_t rows, int64_t cols, int64_t r, int64_t c, int64_t tokens,
                  bool has_bias) {
  const Dense dense = random.dense(rows, cols);
  const std::vector<float> x = random.normals(tokens * cols), bias = random.normals(rows);
  const Clamp clamp = has_bias ? Clamp{-.5f, .75f} : Clamp{};
  std::snprintf(running, sizeof running, "%s block %dx%d linear %dx%d, %d tokens, bias %d",
                isa_name(current_isa()), static_cast<int>(r), static_cast<int>(c),
                static_cast<int>(rows), static_cast<int>(cols), static_cast<int>(tokens), has_bias);
  Expected expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t row = 0; row < rows; ++row) {
      double sum = has_bias ? bias[row] : 0., scale = std::abs(sum);
      for (int64_t col = 0; col < cols; ++col) {
        const double product = double{dense.at(row, col)} * x[t * cols + col];
        sum += product, scale += std::abs(product);
      }
      expected.y.push_back(std::min<double>(std::max<double>(sum, clamp.low), clamp.high));
      expected.scale.push_back(scale);
    }
  const Packed p = pack_block(dense, r, c);
  const std::vector<float> unwritten(expected.y.size(), std::numeric_limits<float>::quiet_NaN());
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded values(p.values, against), guarded_x(x, against), guarded_bias(bias, against);
    const Guarded columns(p.block_columns, against), starts(p.starts, against);
    const Block<float> w{
        values.read_only(), columns.read_only(), starts.read_only(), rows, cols, r, c};
    const Guarded<float> first(unwritten, against), second(unwritten, against);
    const float* b = has_bias ? guarded_bias.read_only() : nullptr;
    block_linear(w, guarded_x.read_only(), tokens, b, first.data(), real_threads(1), clamp);
    compare(first, expected);
    block_linear(w, guarded_x.read_only(), tokens, b, second.data(), real_threads(3), clamp);
    expect(std::memcmp(first.data(), second.data(), 4 * unwritten.size()) == 0,
           "three threads gave other bits than one");
  }
}

}  // namespace

void check_block(int64_t count, Random& random) {
  for (int64_t tokens : {1, 2, 4, 5, 16, 17, 63, 64, 65, 130})
    check_linear(random, 37, 50, 8, 16, tokens, true);
  for (int64_t side : {1, 3, 16, 64, 256}) check_linear(random, 70, 33, side, side, 9, false);
  check_linear(random, 300, 500, 16, 16, 70, true);  // large enough for threads
  for (int64_t i = 0; i < count; ++i)
    check_linear(random, random.integer(1, 150), random.integer(1, 300), random.integer(1, 70),
                 random.integer(1, 70), random.integer(1, 70), random.integer(0, 1) == 1);
}
