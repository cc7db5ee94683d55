// Layers for CUDA kernels that run on the CPU: whole numbers of few bits, so that sums are exact in
// any order and 16-bit elements hold them, between guard pages, against plain loops.
#pragma once
#include "cuda_on_cpu.h"
//
#include "check.h"
#include "kernels/cuda/io.cuh"

inline std::vector<float> whole_numbers(Random& random, int64_t count) {
  std::vector<float> v;
  for (int64_t i = 0; i < count; ++i) v.push_back(static_cast<float>(random.integer(-4, 4)));
  return v;
}

template <typename T>
std::vector<T> narrowed(const std::vector<float>& from) {
  std::vector<T> to(from.size());
  for (size_t i = 0; i < from.size(); ++i) sparseprune::cuda::narrow(from[i], &to[i]);
  return to;
}

// Of which a share of blocks of `side` x `side` is kept, so that rows of blocks have different
// numbers of them, and some none.
inline Dense blocky_numbers(Random& random, int64_t rows, int64_t cols, int side, double kept) {
  Dense w{rows, cols, whole_numbers(random, rows * cols)};
  const int64_t wide = (cols + side - 1) / side, tall = (rows + side - 1) / side;
  std::vector<bool> live;
  for (int64_t i = 0; i < tall * wide; ++i) live.push_back(random.share() < kept);
  for (int64_t i = 0; i < rows * cols; ++i)
    if (!live[static_cast<size_t>(i / cols / side * wide + i % cols / side)]) w.weights[i] = 0;
  return w;
}

// What a layer reads, where, and what W makes of it. Token: or output pixel.
struct Reads {
  std::vector<float> x;
  int tokens;
  std::function<float(const Dense& w, int token, int row)> sum;  // without bias
};

inline Reads linear_reads(Random& random, int64_t cols, int tokens) {
  const std::vector<float> x = whole_numbers(random, tokens * cols);
  return {x, tokens, [=](const Dense& w, int t, int r) {
            float sum = 0;
            for (int64_t c = 0; c < cols; ++c)
              if (w.at(r, c) != 0.f) sum += w.at(r, c) * x[static_cast<size_t>(t * cols + c)];
            return sum;
          }};
}

// Images in any memory format; the columns of W have their taps first, or the channels.
struct Images {
  sparseprune::Conv2dShape s;
  sparseprune::ImageStrides strides;
  bool taps_first;

  int64_t channels() const { return s.channels / s.groups; }
  int64_t cols() const { return channels() * s.kernel_h * s.kernel_w; }
  int out_h() const { return static_cast<int>(s.out_height()); }
  int out_w() const { return static_cast<int>(s.out_width()); }
  int pixels() const { return static_cast<int>(s.batch) * out_h() * out_w(); }
  int rows() const { return static_cast<int>(s.rows); }
  // y with channels innermost, or outermost.
  sparseprune::ImageStrides lying(bool channels_last) const {
    const int64_t plane = out_h() * out_w(), image = plane * rows();
    return channels_last ? sparseprune::ImageStrides{image, 1, out_w() * s.rows, s.rows}
                         : sparseprune::ImageStrides{image, plane, out_w(), 1};
  }
};
// Channels innermost, `gap` elements between the channels of one column and the next.
inline Images channels_last(const sparseprune::Conv2dShape& s, int64_t gap = 0) {
  const int64_t column = s.channels + gap;
  return {s, {s.height * s.width * column, 1, s.width * column, column}, true};
}
inline Images channels_first(const sparseprune::Conv2dShape& s, bool taps_first) {
  const int64_t plane = s.height * s.width;
  return {s, {plane * s.channels, plane, s.width, 1}, taps_first};
}

inline Reads image_reads(Random& random, const Images& in) {
  const auto& s = in.s;
  const int64_t last = (s.batch - 1) * in.strides.image + (s.height - 1) * in.strides.row +
                       (s.width - 1) * in.strides.column + (s.channels - 1) * in.strides.channel;
  const std::vector<float> x = whole_numbers(random, last + 1);
  return {x, in.pixels(), [=](const Dense& w, int t, int r) {
            const auto p = sparseprune::cuda::pixel_of(t, in.out_h(), in.out_w());
            const int64_t group = r / (s.rows / s.groups);
            float sum = 0;
            for (int64_t column = 0; column < in.cols(); ++column) {
              if (w.at(r, column) == 0.f) continue;
              const int64_t window = s.kernel_h * s.kernel_w;
              const int64_t c = in.taps_first ? column % in.channels() : column / window;
              const int64_t tap = in.taps_first ? column / in.channels() : column % window;
              const int64_t i = p.row * s.stride_h - s.padding_h + tap / s.kernel_w * s.dilation_h;
              const int64_t j = p.col * s.stride_w - s.padding_w + tap % s.kernel_w * s.dilation_w;
              if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
              const int64_t at = p.image * in.strides.image + i * in.strides.row +
                                 j * in.strides.column +
                                 (group * in.channels() + c) * in.strides.channel;
              sum += w.at(r, column) * x[static_cast<size_t>(at)];
            }
            return sum;
          }};
}

// run(x, finish) writes every place of `output` in `y`; x touches that guard page.
template <typename T, typename Output, typename Run>
void check_outputs(Random& random, const Dense& w, const Reads& reads, const Output& output,
                   std::vector<T>& y, bool has_bias, Against against, const Run& run) {
  using namespace sparseprune;
  const std::vector<T> bias = narrowed<T>(whole_numbers(random, w.rows));
  const cuda::Finish<T> finish{has_bias ? bias.data() : nullptr, {-300.f, 400.f}};
  const Guarded<T> x(narrowed<T>(reads.x), against);
  std::fill(y.begin(), y.end(), narrowed<T>({12345.f})[0]);
  run(x.read_only(), finish);
  for (int t = 0; t < reads.tokens; ++t)
    for (int r = 0; r < w.rows; ++r) {
      T wanted;
      const float sum = reads.sum(w, t, r) + (has_bias ? cuda::widen(bias[r]) : 0.f);
      cuda::narrow(cuda::limit(sum, finish.clamp), &wanted);
      const float got = cuda::widen(output.at(t)[r * output.step()]);
      expect(got == cuda::widen(wanted), "y[" + std::to_string(t) + ", " + std::to_string(r) +
                                             "] = " + std::to_string(got) + ", not " +
                                             std::to_string(cuda::widen(wanted)));
    }
}

// Copies at once end before a page, late ones begin behind one: each problem meets both.
inline Against page_of(cuda_on_cpu::Arrival arrival) {
  return arrival == cuda_on_cpu::Arrival::at_once ? Against::high_page : Against::low_page;
}
