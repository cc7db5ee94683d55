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

// A depthwise convolution over planes of outputs `to` (residuals lie alike).
struct DepthwiseWindow {
  const int32_t* offsets;  // per tap
  int64_t taps;
  int64_t stride;      // of columns, 1 or 2; with 1, row and slice are those of `to`
  int64_t row, slice;  // floats of x from the windows of a row (a slice) to those of the next
  Planes to;
  const int32_t* live;  // of `to`
};

// Channels one after the other; pointers are to element 0 of the first. Weights [planes, taps].
struct DepthwisePlanes {
  int64_t planes;
  const float* x;
  int64_t x_plane;
  const float *weight, *bias;  // bias may be null
  const float* residual;       // may be null
  int64_t residual_plane;
  float* out;  // aligned
};

// The phases in width of one plane, for one phase of its height and depth.
struct SplitRows {
  const int32_t* rows;  // per row of `to`, slice after slice: where it begins in x, or -1
  int64_t width, stride;
  int64_t phases;
  const int64_t* shift;  // per phase, ascending
  Planes to;
};

// Lanes [lane, lane + count) of a tile show elements from, from + stride ... of a stream.
struct Run {
  int64_t lane, from, count;
};

// limit(x * factor[c * stride] + shift[c]) for every element x of channel c; shift may be null.
struct ChannelScale {
  const float* factor = nullptr;
  int64_t stride = 1;
  const float* shift = nullptr;
  Clamp clamp;

  ChannelScale from(int64_t channel) const {
    return {factor + channel * stride, stride, shift ? shift + channel : nullptr, clamp};
  }
};

// Which lanes of a column lie inside of the image: masks[of[c] + i] is -1 for these, else 0. All do
// where of[c] is negative.
struct Inside {
  const int32_t* of = nullptr;  // per column; null: all lanes of all columns
  const int32_t* masks = nullptr;

  Inside from(int64_t column) const { return {of ? of + column : nullptr, masks}; }
};

// Of every token over its channels: (x - mean) / sqrt(variance + epsilon) * weight + bias; not
// centred: mean is 0. bias may be null.
struct Norm {
  int64_t channels;
  float epsilon;
  bool centred;
  const float *weight, *bias;
};

// Channels c and d of a head as one vector, turned by the angle of every token: out_c = x_c cos_c -
// x_d sin_c, out_d = x_d cos_d + x_c sin_d. d is c + 1, c even (pairs), or c + turned / 2. Channels
// from `turned` on stay as they are.
struct Rotation {
  int64_t size, turned;  // channels of a head; the first of them, even, that turn
  bool pairs;
  const float *cos, *sin;  // a plane per channel that turns, with a lane per token
  int64_t plane;           // of cos and sin
};

// One head of attention: softmax(scale q k + mask) v; causal: query i sees keys 0 to i. A query
// that sees no key gives zeros.
struct Head {
  int64_t size;  // channels
  float scale;
  bool causal;
  const float* mask = nullptr;  // a plane per key, with a lane per query, or null
  int64_t mask_plane = 0;
};

// Some queries of a sequence, which lie in one tile, and where their outputs go.
struct Queries {
  const float* x;
  int64_t plane;  // floats from a channel to the next
  int64_t count, first;
  float* out;
  int64_t out_plane;
};

// Keys and values of a sequence that lie in one tile of each.
struct Keys {
  const float* key;
  int64_t key_plane;
  const float* value;
  int64_t value_plane;
  int64_t count, first;
};

// How a padded position outside the image is filled.
enum class PadMode { kZeros, kReflect, kReplicate, kCircular };

constexpr int64_t kFewElements = 64;  // that are added to a mean in their order

struct PlaneKernels {
  // out = activation(sums + residual) & live, for rows [0, rows): row r at out + r * out_stride,
  // sums + r * sums_stride, residual + r * out_stride (residual may be null). `out` may be `sums`.
  // sums and out are aligned, their strides multiples of 16.
  void (*finish)(const float* sums, int64_t sums_stride, const float* residual, const int32_t* live,
                 int64_t lanes, int64_t rows, Activation activation, float* out,
                 int64_t out_stride);

  // out(z, r, j) = activation(bias + sum_t weight[t] * x[offsets[t] + z * slice + r * row +
  // stride * j] + residual(z, r, j)). Up to 32 floats behind what a window reads are read as well.
  // Whole planes are written, their leads and tails too.
  void (*depthwise)(const DepthwiseWindow& window, const DepthwisePlanes& planes,
                    Activation activation);

  // out + p * to.plane, for phase p: element (z, r, j) = x[rows[z * height + r] + stride * j +
  // shift[p]]; zero where rows is -1 or stride * j + shift[p] lies outside [0, width). The whole
  // planes are written, their leads and tails too; out is aligned.
  void (*split)(const float* x, const SplitRows& rows, float* out);

  // One plane: out [geometry of to] = pooled x [geometry of from]; scratch holds at least
  // from.width + 2 * max(before, after) + 64 floats, aligned. Writes the whole plane.
  void (*pool)(const float* x, const Planes& from, const PoolWindow& window, const Planes& to,
               float* out, float* scratch);

  // One plane: out(z, r, j) = the mean of x from floor(z * from.depth / to.depth) to
  // ceil((z + 1) * from.depth / to.depth), rows and columns alike; scratch holds at least
  // from.width + 16 floats, aligned. Writes the whole plane.
  void (*adaptive)(const float* x, const Planes& from, const Planes& to, float* out,
                   float* scratch);

  // One plane: out(z, r, j) = x(z / times[0], r / times[1], j / times[2]). Up to 16 floats behind a
  // row are read. Writes the whole plane.
  void (*nearest)(const float* x, const Planes& from, const int64_t* times, const Planes& to,
                  float* out);

  // Element 0 of out + p * to.plane = sum of x + p * x_plane [0, lanes) / count, the rest of its
  // plane zeros, for p in [0, planes); aligned. kFewElements are added one after the other.
  void (*mean)(const float* x, int64_t x_plane, int64_t lanes, int64_t count, int64_t planes,
               const Planes& to, float* out);

  // One plane of few elements of to.width images side by side: the means of each. Writes the whole
  // plane.
  void (*means)(const float* x, const Planes& from, const Planes& to, float* out);

  // out[i] = activation(x[i] * by) & live[i], i in [0, lanes); aligned.
  void (*scale)(const float* x, float by, const int32_t* live, int64_t lanes, Activation activation,
                float* out);

  // out[i] = x[i] * y[i], i in [0, lanes); `out` may be x or y.
  void (*multiply)(const float* x, const float* y, int64_t lanes, float* out);

  // panel[c * lanes + i] = source[offsets[c] + i], or 0 outside, for `cols` columns and i in
  // [0, lanes). panel is aligned, source + offset need not be: whole lines that it touches are
  // read.
  void (*pack_streams)(const float* source, const int32_t* offsets, int64_t cols, Inside inside,
                       float* panel, int64_t lanes);

  // The same all inside, column c scaled as channel c.
  void (*pack_scaled)(const float* source, const int32_t* offsets, int64_t cols,
                      const ChannelScale& scale, float* panel, int64_t lanes);

  // The same as pack_streams for outputs that lie `stride` (1 or 2) apart: panel[c * lanes +
  // run.lane + i] = source[offsets[c] + run.from + stride * i], for runs in the order of their
  // lanes; the lanes between them hold anything. Up to 32 floats and 16 masks behind a run are
  // read, and 16 floats behind the panel written.
  void (*pack_runs)(const float* source, const int32_t* offsets, int64_t cols, Inside inside,
                    const Run* runs, int64_t count, int64_t stride, float* panel, int64_t lanes);

  // Rows [begin, end) of one plane, all its slices counted, from x, where rows follow each other;
  // `out` is element 0 of the plane. The zeros behind the rows are written, and with the first row
  // the lead, with the last one the tail.
  void (*spread)(const float* x, const Planes& to, int64_t begin, int64_t end, float* out);

  // Tokens in `lanes` lanes of planes that lie `plane` floats apart, whole vectors; `out` may be x.
  void (*normalise)(const Norm& norm, const float* x, int64_t plane, int64_t lanes, float* out);

  // One token, channel by channel; `out` may be x.
  void (*normalise_row)(const Norm& norm, const float* x, float* out);

  // One head of tokens in `lanes` lanes, whole vectors; out is not x.
  void (*rotate)(const Rotation& rotation, const float* x, int64_t plane, int64_t lanes, float* out,
                 int64_t out_plane);

  // At most a tile of queries, and all keys that they may see, tile by tile, in order: at least
  // one. scratch holds (2 head.size + the most keys in a tile) times the lanes of a tile, aligned.
  void (*attend)(const Queries& queries, const Keys* keys, int64_t tiles, const Head& head,
                 float* scratch);
};

}  // namespace sparseprune
