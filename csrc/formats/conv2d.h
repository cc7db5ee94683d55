// Sizes of a 2-d convolution; input [batch, channels, height, width]. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

struct Conv2dShape {
  int64_t batch, channels, height, width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups, rows;  // rows: output channels

  int64_t out_height() const {
    return (height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  }
  int64_t out_width() const {
    return (width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
  }
};

// Elements from one image, channel, row and column to the next: any memory format.
struct ImageStrides {
  int64_t image, channel, row, column;
};

}  // namespace sparseprune
