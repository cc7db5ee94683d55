// Layers that the models of CUDA thread blocks compute, and what they must give.
#pragma once
#include "check.h"
#include "formats/conv2d.h"
#include "kernels/cuda/chunks.h"

inline void compare(const std::vector<double>& y, const std::vector<double>& expected) {
  double worst = y.size() == expected.size() ? 0 : INFINITY;
  for (size_t i = 0; i < y.size() && i < expected.size(); ++i) {
    const double error = std::abs(y[i] - expected[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  expect(worst < 1e-9, "differs by " + std::to_string(worst));
}

// layer(w, tokens, read) -> y [tokens, rows]; read(token, group, column) is 0 past the last token
// or column.
template <typename Layer>
void check_linear_layer(Random& random, const Dense& w, int64_t tokens, const Layer& layer) {
  const std::vector<float> x = random.normals(tokens * w.cols);
  const auto read = [&](int t, int, int c) {
    return t < tokens && c < w.cols ? x[static_cast<size_t>(t * w.cols + c)] : 0.f;
  };
  std::vector<double> expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < w.rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < w.cols; ++c)
        sum += double{w.at(r, c)} * x[static_cast<size_t>(t * w.cols + c)];
      expected.push_back(sum);
    }
  compare(layer(w, static_cast<int>(tokens), read), expected);
}

// The same for pixels, columns in both orders; the reference walks the window of torch's weight
// [rows, channels, h, w]. make(rows, cols) -> W; layer also takes whether its taps come first.
template <typename Make, typename Layer>
void check_conv2d_layer(Random& random, const sparseprune::Conv2dShape& s, bool taps_first,
                        const Make& make, const Layer& layer) {
  using namespace sparseprune::cuda;
  const int channels = static_cast<int>(s.channels / s.groups);
  const int kernel_h = static_cast<int>(s.kernel_h), kernel_w = static_cast<int>(s.kernel_w);
  const int cols = channels * kernel_h * kernel_w, taps = taps_first ? kernel_h * kernel_w : 1;
  const Dense w = make(s.rows, cols);
  const std::vector<float> x = random.normals(s.batch * s.channels * s.height * s.width);
  const int out_h = static_cast<int>(s.out_height()), out_w = static_cast<int>(s.out_width());
  const int pixels = static_cast<int>(s.batch) * out_h * out_w;
  const auto value = [&](int64_t image, int64_t channel, int64_t i, int64_t j) {
    const bool inside = i >= 0 && i < s.height && j >= 0 && j < s.width;
    return inside ? x[static_cast<size_t>(
                        ((image * s.channels + channel) * s.height + i) * s.width + j)]
                  : 0.f;
  };
  const auto read = [&](int t, int group, int c) {
    if (t >= pixels || c >= cols) return 0.f;
    const Pixel p = pixel_of(t, out_h, out_w);
    const Read r = read_of(c, taps, channels, kernel_h, kernel_w);
    return value(p.image, group * channels + r.channel,
                 p.row * s.stride_h - s.padding_h + r.ky * s.dilation_h,
                 p.col * s.stride_w - s.padding_w + r.kx * s.dilation_w);
  };
  std::vector<double> expected;
  for (int64_t image = 0; image < s.batch; ++image)
    for (int64_t oy = 0; oy < out_h; ++oy)
      for (int64_t ox = 0; ox < out_w; ++ox)
        for (int64_t r = 0; r < s.rows; ++r) {
          double sum = 0;
          for (int c = 0; c < channels; ++c)
            for (int ky = 0; ky < kernel_h; ++ky)
              for (int kx = 0; kx < kernel_w; ++kx) {
                const int tap = ky * kernel_w + kx;
                const int column = taps_first ? tap * channels + c : c * kernel_h * kernel_w + tap;
                sum += double{w.at(r, column)} *
                       value(image, r / (s.rows / s.groups) * channels + c,
                             oy * s.stride_h - s.padding_h + ky * s.dilation_h,
                             ox * s.stride_w - s.padding_w + kx * s.dilation_w);
              }
          expected.push_back(sum);
        }
  compare(layer(w, pixels, read), expected);
}
