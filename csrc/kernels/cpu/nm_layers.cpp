#include "kernels/cpu/nm_layers.h"

#include "kernels/cpu/panel_layers.h"

namespace sparseprune {
namespace {

constexpr int64_t kDotTokens = 4;     // up to so many tokens, x is read where it lies
constexpr int64_t kSumRows = 64;      // rows that a part of the panel serves before the next
constexpr int64_t kPanelGroups = 32;  // of that part: 128 columns of 2:4 lie in L1

// What panel_layers.h asks of a weight: its units are rows.
struct NmPanels {
  const Nm<float>& w;

  int64_t rows() const { return w.rows; }
  int64_t cols() const { return w.cols; }
  int64_t taps() const { return w.taps; }
  int64_t units() const { return w.rows; }
  int64_t sum_rows() const { return kSumRows; }
  int64_t work() const { return w.rows * w.groups() * w.n; }
  std::vector<int64_t> cut(int64_t begin, int64_t end, int64_t parts) const {
    std::vector<int64_t> bounds;
    for (int64_t p = 0; p <= parts; ++p) bounds.push_back(begin + (end - begin) * p / parts);
    return bounds;
  }

  template <typename Store>
  void multiply(const float* panel, int64_t vectors, const float* bias, float* sums, int64_t begin,
                int64_t end, const Store& store) const {
    const int64_t lanes = vectors * panel_kernels().width;
    for (int64_t row = begin; row < end; row += kSumRows) {
      const int64_t rows = std::min(kSumRows, end - row);
      for (int64_t r = 0; r < rows; ++r)
        std::fill_n(sums + r * lanes, lanes, bias ? bias[row + r] : 0.f);
      for (int64_t g = 0; g < w.groups(); g += kPanelGroups)
        nm_kernels().panels(w, g, std::min(g + kPanelGroups, w.groups()), panel,
                            static_cast<int>(vectors), sums, row, row + rows);
      store(row, rows, sums);
    }
  }
};

}  // namespace

void nm_linear(const Nm<float>& w, const float* x, int64_t tokens, const float* bias, float* y,
               const Threads& threads, Clamp clamp) {
  if (tokens > kDotTokens) return linear_by_panels(NmPanels{w}, x, tokens, bias, y, threads, clamp);
  over_units(NmPanels{w}, tokens, threads, [&](int64_t begin, int64_t end) {
    nm_kernels().dots(w, x, tokens, w.cols, bias, y, w.rows, begin, end, clamp);
  });
}

void nm_conv2d(const Nm<float>& w, const float* x, const ImageStrides& x_strides,
               const Conv2dShape& s, const float* bias, float* y, const ImageStrides& y_strides,
               const Threads& threads, Clamp clamp) {
  conv2d_by_panels(NmPanels{w}, x, x_strides, s, bias, y, y_strides, threads, clamp);
}

}  // namespace sparseprune
