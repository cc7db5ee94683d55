// Kernels over planes (formats/planes.h): what a program does besides multiplying by a weight.
//
// Counts of floats are multiples of 16 (`lanes`), pointers are aligned to 64 bytes where a comment
// says so; `live` [lanes] holds -1 where a lane is an element of the image and 0 in padding.
#pragma once
#include <cstdint>

#include "formats/activation.h"
#include "formats/planes.h"

namespace sparseprune {

// A window over one plane, in elements; zeros: padding counts as elements of value 0.
struct PoolWindow {
  int64_t kernel[3], stride[3], before[3], dilation[3];
  bool average;           // else the maximum, which leaves padding out
  bool count_padding;     // averages divide by the window cut to the padded size, else by its
  int64_t padded_end[3];  // live part; size + before + after of the input, for that cut
};

// How a padded position outside the image is filled.
enum class PadMode { kZeros, kReflect, kReplicate, kCircular };

struct PlaneKernels {
  // out = activation(sums + residual) & live, for rows [0, rows): row r at out + r * out_stride,
  // sums + r * sums_stride, residual + r * out_stride (residual may be null). `out` may be `sums`.
  // sums and out are aligned, their strides multiples of 16.
  void (*finish)(const float* sums, int64_t sums_stride, const float* residual, const int32_t* live,
                 int64_t lanes, int64_t rows, Activation activation, float* out,
                 int64_t out_stride);

  // out[i] = activation(bias + sum_t weight[t] * x[offset[t] + i] + residual[i]) & live[i] for
  // one channel, i in [0, lanes). x + offset need not be aligned; residual may be null.
  void (*depthwise)(const float* x, const int32_t* offsets, const float* weight, int64_t taps,
                    float bias, const float* residual, const int32_t* live, int64_t lanes,
                    Activation activation, float* out);

  // The same for a stride of 2 in width (any in height and depth), row by row without splitting x
  // first: output row of `width` elements at `out` (not aligned, nothing beyond width is written),
  // out[j] = activation(bias + sum_t weight[t] * x[offset[t] + 2 * j] + residual[j]).
  void (*depthwise_row2)(const float* x, const int32_t* offsets, const float* weight, int64_t taps,
                         float bias, const float* residual, int64_t width, Activation activation,
                         float* out);

  // out[j] = x[j * stride] for j in [0, n); nothing aligned, reads nothing past the last element.
  void (*every)(const float* x, int64_t stride, int64_t n, float* out);

  // One plane: out [geometry of to] = pooled x [geometry of from]; scratch holds at least
  // from.width + 2 * max(before, after) + 64 floats, aligned. Writes elements only, not padding.
  void (*pool)(const float* x, const Planes& from, const PoolWindow& window, const Planes& to,
               float* out, float* scratch);

  // Sum of n floats, in a fixed order.
  float (*sum)(const float* x, int64_t n);

  // out[i] = activation(x[i] * by) & live[i], i in [0, lanes); aligned.
  void (*scale)(const float* x, float by, const int32_t* live, int64_t lanes, Activation activation,
                float* out);

  // panel[c * lanes + i] = source[offsets[c] + i] for `cols` columns and i in [0, lanes).
  // panel is aligned, source + offset need not be.
  void (*pack_streams)(const float* source, const int32_t* offsets, int64_t cols, float* panel,
                       int64_t lanes);
};

}  // namespace sparseprune
