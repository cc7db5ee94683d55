#include "kernels/cpu/block_layers.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/table.h"

namespace sparseprune {
namespace {

constexpr int64_t kDotTokens = 4;         // up to so many tokens, x is read where it lies
constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which one thread is faster
constexpr int64_t kLargestBlock = 256;    // rows

float* scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.take(floats);
}

float limit(float v, Clamp clamp) {
  return v < clamp.low ? clamp.low : v > clamp.high ? clamp.high : v;
}

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

// Lanes (tokens, pixels) in tiles of as many vectors as the kernels take at once.
struct Tiles {
  int64_t lanes, width, most;

  explicit Tiles(int64_t all)
      : lanes(all),
        width(panel_kernels().width),
        most(panel_kernels().max_vectors * panel_kernels().width) {}
  int64_t count() const { return (lanes + most - 1) / most; }
  int64_t first(int64_t tile) const { return tile * most; }
  int64_t live(int64_t tile) const { return std::min(most, lanes - first(tile)); }
  int64_t vectors(int64_t tile) const { return (live(tile) + width - 1) / width; }
};

// Rows of blocks [begin, end) times a panel [cols, vectors * width]; store(first row, rows, sums)
// takes the sums [rows, vectors * width] of each.
template <typename Store>
void multiply(const Block<float>& w, const float* panel, int64_t vectors, const float* bias,
              float* sums, int64_t begin, int64_t end, const Store& store) {
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

// Runs task(tile, group, first row of blocks, last) over threads.
template <typename Task>
void over_tiles(const Block<float>& w, const Tiles& tiles, int64_t groups, const Threads& threads,
                const Task& task) {
  const int64_t tall = w.block_rows() / std::max<int64_t>(groups, 1);
  const bool small = w.starts[w.block_rows()] * w.r * w.c * tiles.lanes < kSerialWork;
  const int64_t units = tiles.count() * groups;
  const int64_t parts = small || units >= 2 * threads.count ? 1 : threads.count;
  const auto one = [&](int64_t i) {
    const int64_t unit = i / parts, part = i % parts, group = unit % groups;
    const std::vector<int64_t> bounds = cut_evenly(w, group * tall, (group + 1) * tall, parts);
    if (bounds[part] < bounds[part + 1]) task(unit / groups, group, bounds[part], bounds[part + 1]);
  };
  if (small)
    for (int64_t i = 0; i < units; ++i) one(i);
  else
    threads.run(units * parts, one);
}

// Where the lanes of a tile read x: for every tap and lane an offset, or kOutside.
class Window {
 public:
  Window(const Conv2dShape& s, const ImageStrides& x, int64_t first, int64_t live, int64_t lanes)
      : lanes_(lanes), offsets_(static_cast<size_t>(s.kernel_h * s.kernel_w * lanes), kOutside) {
    const int64_t out_w = s.out_width(), pixels = s.out_height() * out_w;
    for (int64_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap)
      for (int64_t lane = 0; lane < live; ++lane) {
        const int64_t image = (first + lane) / pixels, pixel = (first + lane) % pixels;
        const int64_t i =
            pixel / out_w * s.stride_h + tap / s.kernel_w * s.dilation_h - s.padding_h;
        const int64_t j =
            pixel % out_w * s.stride_w + tap % s.kernel_w * s.dilation_w - s.padding_w;
        if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
        offsets_[static_cast<size_t>(tap * lanes + lane)] =
            image * x.image + i * x.row + j * x.column;
      }
  }

  // One panel row: what the lanes read of a channel, whose first element is at `x`, at a tap.
  void read(const float* x, int64_t tap, float* panel) const {
    const int64_t* offset = offsets_.data() + tap * lanes_;
    for (int64_t lane = 0; lane < lanes_; ++lane)
      panel[lane] = offset[lane] == kOutside ? 0.f : x[offset[lane]];
  }

 private:
  static constexpr int64_t kOutside = -1;
  int64_t lanes_;
  std::vector<int64_t> offsets_;
};

}  // namespace

void block_linear(const Block<float>& w, const float* x, int64_t tokens, const float* bias,
                  float* y, const Threads& threads, Clamp clamp) {
  if (tokens <= kDotTokens) {
    const bool small = w.starts[w.block_rows()] * w.r * w.c * tokens < kSerialWork;
    const int64_t parts = small ? 1 : threads.count;
    const std::vector<int64_t> bounds = cut_evenly(w, 0, w.block_rows(), parts);
    const auto task = [&](int64_t i) {
      dots(w, x, tokens, bias, y, bounds[i], bounds[i + 1], clamp);
    };
    return small ? task(0) : threads.run(parts, task);
  }
  const Tiles tiles(tokens);
  const auto task = [&](int64_t tile, int64_t, int64_t begin, int64_t end) {
    const int64_t first = tiles.first(tile), vectors = tiles.vectors(tile);
    const int64_t lanes = vectors * tiles.width, live = tiles.live(tile);
    float* panel = scratch((w.cols + w.r) * lanes);
    const PanelKernels& k = panel_kernels();
    k.pack_tokens(x + first * w.cols, w.cols, live, 0, w.cols, panel, lanes);
    multiply(w, panel, vectors, bias, panel + w.cols * lanes, begin, end,
             [&](int64_t row, int64_t rows, const float* sums) {
               k.store_tokens(sums, lanes, rows, live, y + first * w.rows + row, w.rows, clamp);
             });
  };
  over_tiles(w, tiles, 1, threads, task);
}

void block_conv2d(const Block<float>& w, const float* x, const ImageStrides& x_strides,
                  const Conv2dShape& s, const float* bias, float* y, const ImageStrides& y_strides,
                  const Threads& threads, Clamp clamp) {
  const int64_t out_w = s.out_width(), pixels = s.out_height() * out_w;
  const int64_t taps = s.kernel_h * s.kernel_w, channels = s.channels / s.groups;
  const Tiles tiles(s.batch * pixels);
  const auto task = [&](int64_t tile, int64_t group, int64_t begin, int64_t end) {
    const int64_t first = tiles.first(tile), vectors = tiles.vectors(tile);
    const int64_t lanes = vectors * tiles.width, live = tiles.live(tile);
    float* panel = scratch((w.cols + w.r) * lanes);
    const Window window(s, x_strides, first, live, lanes);
    for (int64_t c = 0; c < w.cols; ++c) {
      const int64_t channel = w.taps == 1 ? c / taps : c % channels;
      const int64_t tap = w.taps == 1 ? c % taps : c / channels;
      window.read(x + (group * channels + channel) * x_strides.channel, tap, panel + c * lanes);
    }
    const auto store = [&](int64_t row, int64_t rows, const float* sums) {
      for (int64_t lane = 0; lane < live; ++lane) {
        const int64_t image = (first + lane) / pixels, pixel = (first + lane) % pixels;
        float* to = y + image * y_strides.image + row * y_strides.channel +
                    pixel / out_w * y_strides.row + pixel % out_w * y_strides.column;
        for (int64_t r = 0; r < rows; ++r)
          to[r * y_strides.channel] = limit(sums[r * lanes + lane], clamp);
      }
    };
    multiply(w, panel, vectors, bias, panel + w.cols * lanes, begin, end, store);
  };
  over_tiles(w, tiles, s.groups, threads, task);
}

}  // namespace sparseprune
