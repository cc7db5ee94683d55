#include "kernels/cpu/block_layers.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/panel_layers.h"

namespace sparseprune {
namespace {

constexpr int64_t kDotTokens = 4;       // up to so many tokens, x is read where it lies
constexpr int64_t kLargestBlock = 256;  // rows

// One stored block as a matrix, and the columns of it that W has.
struct Piece {
  DenseMatrix matrix;
  int64_t column, cols;
};

Piece piece(const Block<float>& w, int64_t block) {
  const int64_t column = w.columns[block] * w.c;
  return {{w.values + block * w.r * w.c, w.r, w.c}, column, std::min(w.c, w.cols - column)};
}

int64_t live_rows(const Block<float>& w, int64_t row) { return std::min(w.r, w.rows - row * w.r); }

// Rows of blocks [begin, end) cut into `parts` of about equal numbers of blocks; parts + 1 bounds.
std::vector<int64_t> cut_evenly(const Block<float>& w, int64_t begin, int64_t end, int64_t parts) {
  std::vector<int64_t> bounds{begin};
  const int64_t first = w.starts[begin], total = w.starts[end] - first;
  for (int64_t p = 1; p < parts; ++p) {
    const int64_t wanted = first + total * p / parts;
    const int32_t* at = std::lower_bound(w.starts + bounds.back(), w.starts + end, wanted);
    bounds.push_back(at - w.starts);
  }
  bounds.push_back(end);
  return bounds;
}

// Rows of blocks [begin, end) for at most kDotTokens tokens: dot products, block after block.
void dots(const Block<float>& w, const float* x, int64_t tokens, const float* bias, float* y,
          int64_t begin, int64_t end, Clamp clamp) {
  float sums[kDotTokens * kLargestBlock], part[kDotTokens * kLargestBlock];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t rows = live_rows(w, row), first = row * w.r;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < rows; ++r) sums[t * rows + r] = bias ? bias[first + r] : 0.f;
    for (int64_t b = w.starts[row]; b < w.starts[row + 1]; ++b) {
      const Piece p = piece(w, b);
      // Past the last column x ends; what a block has there is zero.
      if (p.cols < w.c) {
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < p.cols; ++c)
              sums[t * rows + r] += p.matrix.values[r * w.c + c] * x[t * w.cols + p.column + c];
        continue;
      }
      dense_kernels().dots(p.matrix, x + p.column, tokens, w.cols, nullptr, part, rows, 0, rows,
                           {});
      for (int64_t i = 0; i < tokens * rows; ++i) sums[i] += part[i];
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < rows; ++r)
        y[t * w.rows + first + r] = limit(sums[t * rows + r], clamp);
  }
}

// What panel_layers.h asks of a weight: its units are rows of blocks.
struct BlockPanels {
  const Block<float>& w;

  int64_t rows() const { return w.rows; }
  int64_t cols() const { return w.cols; }
  int64_t taps() const { return w.taps; }
  int64_t units() const { return w.block_rows(); }
  int64_t sum_rows() const { return w.r; }
  int64_t work() const { return w.starts[w.block_rows()] * w.r * w.c; }
  std::vector<int64_t> cut(int64_t begin, int64_t end, int64_t parts) const {
    return cut_evenly(w, begin, end, parts);
  }

  template <typename Store>
  void multiply(const float* panel, int64_t vectors, const float* bias, float* sums, int64_t begin,
                int64_t end, const Store& store) const {
    const int64_t lanes = vectors * panel_kernels().width;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t rows = live_rows(w, row);
      for (int64_t r = 0; r < rows; ++r)
        std::fill_n(sums + r * lanes, lanes, bias ? bias[row * w.r + r] : 0.f);
      for (int64_t b = w.starts[row]; b < w.starts[row + 1]; ++b) {
        const Piece p = piece(w, b);
        dense_kernels().panels(p.matrix, 0, p.cols, panel + p.column * lanes,
                               static_cast<int>(vectors), sums, 0, rows);
      }
      store(row * w.r, rows, sums);
    }
  }
};

}  // namespace

void block_linear(const Block<float>& w, const float* x, int64_t tokens, const float* bias,
                  float* y, const Threads& threads, Clamp clamp) {
  if (tokens > kDotTokens)
    return linear_by_panels(BlockPanels{w}, x, tokens, bias, y, threads, clamp);
  over_units(BlockPanels{w}, tokens, threads,
             [&](int64_t begin, int64_t end) { dots(w, x, tokens, bias, y, begin, end, clamp); });
}

void block_conv2d(const Block<float>& w, const float* x, const ImageStrides& x_strides,
                  const Conv2dShape& s, const float* bias, float* y, const ImageStrides& y_strides,
                  const Threads& threads, Clamp clamp) {
  conv2d_by_panels(BlockPanels{w}, x, x_strides, s, bias, y, y_strides, threads, clamp);
}

}  // namespace sparseprune
