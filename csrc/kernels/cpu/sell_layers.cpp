#include "kernels/cpu/sell_layers.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/table.h"

namespace sparseprune {
namespace {

constexpr int64_t kSerialWork = 1 << 11;  // steps times tokens below which one thread is faster

}  // namespace

std::vector<int64_t> cut_evenly(const Sell& w, int64_t parts) {
  const int64_t first = w.starts[0], total = w.starts[w.units()] - first;
  std::vector<int64_t> bounds{0};
  for (int64_t p = 1; p < parts; ++p) {
    const int32_t wanted = static_cast<int32_t>(first + total * p / parts);
    const int32_t* found = std::lower_bound(w.starts + bounds.back(), w.starts + w.units(), wanted);
    bounds.push_back(found - w.starts);
  }
  bounds.push_back(w.units());
  return bounds;
}

void sell_slices(const Sell& w, const float* x, int64_t tokens, int64_t x_stride, const float* bias,
                 float* y, int64_t y_stride, int64_t begin, int64_t end, Clamp clamp) {
  static thread_local Scratch memory;
  if (begin == end) return;
  // Copied: windows reach past the features, and are read fastest from whole lines.
  const int64_t reach = w.reach();
  float* copy = memory.take(tokens * reach);
  for (int64_t t = 0; t < tokens; ++t) {
    float* rest = std::copy_n(x + t * x_stride, w.cols, copy + t * reach);
    std::fill(rest, copy + (t + 1) * reach, 0.f);
  }
  sell_kernels().linear(w, copy, tokens, reach, bias, y, y_stride, begin, end, clamp);
}

void sell_linear(const Sell& w, const float* x, int64_t tokens, const float* bias, float* y,
                 const Threads& threads, Clamp clamp) {
  const bool small = (w.starts[w.units()] - w.starts[0]) * tokens < kSerialWork;
  const std::vector<int64_t> bounds = cut_evenly(w, small ? 1 : threads.count);
  const auto task = [&](int64_t i) {
    sell_slices(w, x, tokens, w.cols, bias, y, w.rows, bounds[i], bounds[i + 1], clamp);
  };
  if (small)
    task(0);
  else
    threads.run(threads.count, task);
}

}  // namespace sparseprune
