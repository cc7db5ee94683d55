#include "kernels/cpu/bitmask_layers.h"

#include "kernels/cpu/table.h"

namespace sparseprune {
namespace {

constexpr int64_t kSerialWork = 1 << 16;  // positions times tokens below which one thread is faster
constexpr int64_t kColumnCost = 16;       // expanding 64 rows takes as long as reading 16 values

}  // namespace

std::vector<int64_t> cut_evenly(const Bitmask& w, int64_t parts) {
  const auto cost_before = [&](int64_t unit) {
    return unit * w.cols * kColumnCost + w.starts[unit] - w.starts[0];
  };
  const int64_t total = cost_before(w.units());
  std::vector<int64_t> bounds{0};
  for (int64_t p = 1; p < parts; ++p) {
    int64_t unit = bounds.back();
    // A unit belongs to the part in which most of it lies.
    while (unit < w.units() && (cost_before(unit) + cost_before(unit + 1)) * parts <= 2 * total * p)
      ++unit;
    bounds.push_back(unit);
  }
  bounds.push_back(w.units());
  return bounds;
}

void bitmask_linear(const Bitmask& w, const float* x, int64_t tokens, const float* bias, float* y,
                    const Threads& threads, Clamp clamp) {
  const bool small = w.rows * w.cols * tokens < kSerialWork;
  const std::vector<int64_t> bounds = cut_evenly(w, small ? 1 : threads.count);
  const auto task = [&](int64_t i) {
    bitmask_linear_kernel()(w, x, tokens, w.cols, bias, y, w.rows, bounds[i], bounds[i + 1], clamp);
  };
  if (small)
    task(0);
  else
    threads.run(threads.count, task);
}

}  // namespace sparseprune
