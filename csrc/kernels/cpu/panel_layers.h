// Layers by way of panels (panel.h), over threads, for any packed weight that offers
//
//   rows(), cols(), taps()         as in its format
//   units()                        independent parts of its rows, in order
//   sum_rows()                     rows of sums that multiply needs room for
//   work()                         multiply-adds per lane
//   cut(begin, end, parts)         parts + 1 bounds of about equal parts of units [begin, end)
//   multiply(panel, vectors, bias, sums, begin, end, store)
//                                  units [begin, end) times a panel [cols, vectors * width];
//                                  store(first row, rows, sums [rows, lanes]) takes what they give
//
// No torch: the caller brings the threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/threads.h"

namespace sparseprune {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which one thread is faster

inline float* panel_scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.take(floats);
}

inline float limit(float v, Clamp clamp) {
  return v < clamp.low ? clamp.low : v > clamp.high ? clamp.high : v;
}

// Lanes (tokens, pixels) in tiles of as many vectors as the kernels take at once.
struct PanelTiles {
  int64_t lanes, width, most;

  explicit PanelTiles(int64_t all)
      : lanes(all),
        width(panel_kernels().width),
        most(panel_kernels().max_vectors * panel_kernels().width) {}
  int64_t count() const { return (lanes + most - 1) / most; }
  int64_t first(int64_t tile) const { return tile * most; }
  int64_t live(int64_t tile) const { return std::min(most, lanes - first(tile)); }
  int64_t vectors(int64_t tile) const { return (live(tile) + width - 1) / width; }
};

// Runs task(begin, end) for all units, over threads where `lanes` of work repay them.
template <typename Weight, typename Task>
void over_units(const Weight& w, int64_t lanes, const Threads& threads, const Task& task) {
  if (w.work() * lanes < kSerialWork) return task(0, w.units());
  const std::vector<int64_t> bounds = w.cut(0, w.units(), threads.count);
  threads.run(threads.count, [&](int64_t i) { task(bounds[i], bounds[i + 1]); });
}

// Runs task(tile, group, first unit, last) over threads.
template <typename Weight, typename Task>
void over_tiles(const Weight& w, const PanelTiles& tiles, int64_t groups, const Threads& threads,
                const Task& task) {
  const int64_t tall = w.units() / std::max<int64_t>(groups, 1);
  const bool small = w.work() * tiles.lanes < kSerialWork;
  const int64_t units = tiles.count() * groups;
  const int64_t parts = small || units >= 2 * threads.count ? 1 : threads.count;
  const auto one = [&](int64_t i) {
    const int64_t unit = i / parts, part = i % parts, group = unit % groups;
    const std::vector<int64_t> bounds = w.cut(group * tall, (group + 1) * tall, parts);
    if (bounds[part] < bounds[part + 1]) task(unit / groups, group, bounds[part], bounds[part + 1]);
  };
  if (small)
    for (int64_t i = 0; i < units; ++i) one(i);
  else
    threads.run(units * parts, one);
}

// Where the lanes of a tile read x: for every tap and lane an offset, or kOutside.
class PanelWindow {
 public:
  PanelWindow(const Conv2dShape& s, const ImageStrides& x, int64_t first, int64_t live,
              int64_t lanes)
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

template <typename Weight>
void linear_by_panels(const Weight& w, const float* x, int64_t tokens, const float* bias, float* y,
                      const Threads& threads, Clamp clamp) {
  const PanelTiles tiles(tokens);
  const auto task = [&](int64_t tile, int64_t, int64_t begin, int64_t end) {
    const int64_t first = tiles.first(tile), vectors = tiles.vectors(tile);
    const int64_t lanes = vectors * tiles.width, live = tiles.live(tile);
    float* panel = panel_scratch((w.cols() + w.sum_rows()) * lanes);
    const PanelKernels& k = panel_kernels();
    k.pack_tokens(x + first * w.cols(), w.cols(), live, 0, w.cols(), panel, lanes);
    w.multiply(panel, vectors, bias, panel + w.cols() * lanes, begin, end,
               [&](int64_t row, int64_t rows, const float* sums) {
                 k.store_tokens(sums, lanes, rows, live, y + first * w.rows() + row, w.rows(),
                                clamp);
               });
  };
  over_tiles(w, tiles, 1, threads, task);
}

template <typename Weight>
void conv2d_by_panels(const Weight& w, const float* x, const ImageStrides& x_strides,
                      const Conv2dShape& s, const float* bias, float* y,
                      const ImageStrides& y_strides, const Threads& threads, Clamp clamp) {
  const int64_t out_w = s.out_width(), pixels = s.out_height() * out_w;
  const int64_t taps = s.kernel_h * s.kernel_w, channels = s.channels / s.groups;
  const PanelTiles tiles(s.batch * pixels);
  const auto task = [&](int64_t tile, int64_t group, int64_t begin, int64_t end) {
    const int64_t first = tiles.first(tile), vectors = tiles.vectors(tile);
    const int64_t lanes = vectors * tiles.width, live = tiles.live(tile);
    float* panel = panel_scratch((w.cols() + w.sum_rows()) * lanes);
    const PanelWindow window(s, x_strides, first, live, lanes);
    for (int64_t c = 0; c < w.cols(); ++c) {
      const int64_t channel = w.taps() == 1 ? c / taps : c % channels;
      const int64_t tap = w.taps() == 1 ? c % taps : c / channels;
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
    w.multiply(panel, vectors, bias, panel + w.cols() * lanes, begin, end, store);
  };
  over_tiles(w, tiles, s.groups, threads, task);
}

}  // namespace sparseprune
