#include "program/edges.h"

#include <algorithm>
#include <numeric>

namespace sparseprune {
namespace {

constexpr int64_t kLine = 16;  // floats, which kernels may read behind a mask as well

}  // namespace

Edges::Edges(const Window& window, const Planes& x, const Planes& y, int64_t channels,
             int64_t lanes)
    : period_(std::lcm(y.row, kLine)) {
  if (x.row - x.width >= std::max(window.before[2], window.after[2])) return;
  const int64_t places = window.kernel[2], length = period_ + lanes + kLine;
  std::vector<int32_t> of;  // per place
  for (int64_t k = 0; k < places; ++k) {
    const int64_t first = k * window.dilation[2] - window.before[2], stride = window.stride[2];
    const bool all = first >= 0 && first + (y.width - 1) * stride < x.width;
    of.push_back(all ? -1 : static_cast<int32_t>(masks_.size()));
    for (int64_t i = 0; i < length && !all; ++i) {
      const int64_t at = first + i % y.row * stride;
      masks_.push_back(at >= 0 && at < x.width ? -1 : 0);
    }
  }
  for (int64_t c = 0; c < channels * window.taps(); ++c) of_.push_back(of[c % places]);
}

Inside Edges::inside(int64_t lane) const {
  if (of_.empty()) return {};
  return {of_.data(), masks_.data() + lane % period_};
}

}  // namespace sparseprune
