// What the copy unit (TMA) is told of a tensor of 16-bit elements: sizes and strides, and the
// window that one copy takes. No CUDA here: the launcher makes a tensor map of it, the CPU tests
// copy by it.
#pragma once
#include <cstdint>

#include "formats/conv2d.h"

namespace sparseprune::cuda {

// Dimensions innermost first; strides in elements, that of the innermost is 1. Two dimensions: a
// window is box[0] elements of box[1] rows. Four (channel, column, row, image): box[0] channels of
// box[1] output pixels, one after the other in the order of y, through images; `lower` and `upper`
// are where tap (0, 0) of the first and of the last pixel lies, from the corners of an image, and
// `steps` lie between pixels, each as (column, row).
struct TensorWindow {
  const void* base;
  int rank;
  int64_t sizes[4], strides[4];
  int box[2];
  int lower[2] = {0, 0}, upper[2] = {0, 0}, steps[2] = {1, 1};
};

inline TensorWindow row_window(const void* base, int64_t rows, int64_t cols, int wide, int tall) {
  return {base, 2, {cols, rows, 1, 1}, {1, cols, 0, 0}, {wide, tall}};
}

inline TensorWindow pixel_window(const void* base, const ImageStrides& strides,
                                 const Conv2dShape& s, int channels, int pixels) {
  const auto corner = [](int64_t padding, int64_t dilation, int64_t kernel) {
    return static_cast<int>(padding - dilation * (kernel - 1));
  };
  return {base,
          4,
          {s.channels, s.width, s.height, s.batch},
          {1, strides.column, strides.row, strides.image},
          {channels, pixels},
          {static_cast<int>(-s.padding_w), static_cast<int>(-s.padding_h)},
          {corner(s.padding_w, s.dilation_w, s.kernel_w),
           corner(s.padding_h, s.dilation_h, s.kernel_h)},
          {static_cast<int>(s.stride_w), static_cast<int>(s.stride_h)}};
}

// Whether the copy unit takes it: whole pieces of 16 bytes everywhere, corners in a byte, taps at
// most 255 away, steps of at most 8, sizes and strides of 32 and 40 bits.
inline bool copyable(const TensorWindow& w) {
  bool fits = reinterpret_cast<uintptr_t>(w.base) % 16 == 0;
  for (int i = 0; i < w.rank; ++i)
    fits = fits && w.sizes[i] >= 1 && w.sizes[i] <= INT32_MAX &&
           (i == 0 ? w.strides[i] == 1
                   : w.strides[i] % 8 == 0 && w.strides[i] > 0 && w.strides[i] < int64_t{1} << 38);
  for (int i = 0; i < 2; ++i)
    fits = fits && w.lower[i] >= -128 && w.upper[i] >= -128 && w.upper[i] <= 127 &&
           w.lower[i] + w.upper[i] >= -255 && w.upper[i] - w.lower[i] > -w.sizes[i + 1] &&
           w.steps[i] >= 1 && w.steps[i] <= 8;
  return fits;
}

}  // namespace sparseprune::cuda
