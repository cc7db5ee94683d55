// Where kernels read x and write y: rows of tokens, or the pixels of images in any memory format.
#pragma once
#include <bit>
#include <cstdint>

#include "formats/clamp.h"
#include "formats/conv2d.h"
#include "kernels/cuda/chunks.h"
#include "kernels/cuda/tensor_core.cuh"

namespace sparseprune::cuda {

// x [tokens, cols]. `vector`: x is whole, aligned chunks.
template <typename T>
struct TokenInput {
  const T* x;
  int tokens, cols;
  bool vector;

  struct Row {
    const T* from;  // null past the last token
  };
  struct Column {
    int at, live;  // columns from there to the last
  };

  static constexpr int kTableBytes = 0;  // of shared memory per token of a tile
  __device__ void fill(void*, int, int, int) const {}
  __device__ Row row(const void*, int first, int t) const {
    return {first + t < tokens ? x + static_cast<int64_t>(first + t) * cols : nullptr};
  }
  __device__ Column column(int c) const { return {c, cols - c}; }
  __device__ const T* element(const Row& row, const Column& column) const {
    return row.from && column.live > 0 ? row.from + column.at : nullptr;
  }
};

// Images seen as [output pixels, columns of W]. `vector`: channels are innermost in x, and the
// columns of a chunk are neighbouring channels, aligned.
template <typename T>
struct ImageInput {
  const T* x;
  ImageStrides strides;
  Conv2dShape s;
  int out_h, out_w, pixels, cols, taps, channels;  // channels of a group; pixels of all images
  bool vector;

  struct alignas(16) Row {
    const T* from;  // the first element of the group's channels; null past the last pixel
    int row, col;   // of tap (0, 0), which may lie in the padding
  };
  struct Column {
    int64_t offset;
    int row, col;  // of the tap
    int live;
  };

  static constexpr int kTableBytes = sizeof(Row);
  // One thread per pixel of the tile; the divisions are done once.
  __device__ void fill(void* table, int first, int t, int group) const {
    const Pixel p = pixel_of(first + t, out_h, out_w);
    const T* from = x + p.image * strides.image + int64_t{group} * channels * strides.channel;
    static_cast<Row*>(table)[t] = {
        first + t < pixels ? from : nullptr,
        p.row * static_cast<int>(s.stride_h) - static_cast<int>(s.padding_h),
        p.col * static_cast<int>(s.stride_w) - static_cast<int>(s.padding_w)};
  }
  __device__ Row row(const void* table, int, int t) const {
    return static_cast<const Row*>(table)[t];
  }
  __device__ Column column(int c) const {
    const Read r =
        read_of(c, taps, channels, static_cast<int>(s.kernel_h), static_cast<int>(s.kernel_w));
    return {r.channel * strides.channel, r.ky * static_cast<int>(s.dilation_h),
            r.kx * static_cast<int>(s.dilation_w), cols - c};
  }
  __device__ const T* element(const Row& row, const Column& column) const {
    const int i = row.row + column.row, j = row.col + column.col;
    const bool inside =
        row.from && column.live > 0 && i >= 0 && i < s.height && j >= 0 && j < s.width;
    return inside ? row.from + column.offset + i * strides.row + j * strides.column : nullptr;
  }
};

// y [tokens, rows].
template <typename T>
struct TokenOutput {
  T* y;
  int tokens, rows;

  __device__ T* at(int token) const { return y + static_cast<int64_t>(token) * rows; }
  __device__ int64_t step() const { return 1; }
  // Whether rows 2 i and 2 i + 1 of every token are neighbours, aligned as a pair.
  __device__ bool pairs() const {
    return rows % 2 == 0 && reinterpret_cast<uintptr_t>(y) % (2 * sizeof(T)) == 0;
  }
};

template <typename T>
struct ImageOutput {
  T* y;
  ImageStrides strides;
  int out_h, out_w, tokens, rows;

  __device__ T* at(int token) const {
    const Pixel p = pixel_of(token, out_h, out_w);
    return y + p.image * strides.image + p.row * strides.row + p.col * strides.column;
  }
  __device__ int64_t step() const { return strides.channel; }
  __device__ bool pairs() const {
    return strides.channel == 1 && (strides.image | strides.row | strides.column) % 2 == 0 &&
           reinterpret_cast<uintptr_t>(y) % (2 * sizeof(T)) == 0;
  }
};

__device__ inline float limit(float v, Clamp clamp) {
  return v < clamp.low ? clamp.low : v > clamp.high ? clamp.high : v;
}

__device__ inline void narrow(float v, float* to) { *to = v; }
__device__ inline void narrow(float v, __half* to) { *to = __float2half_rn(v); }
__device__ inline void narrow(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// What becomes of a sum: bias, limits, dtype.
template <typename T>
struct Finish {
  const T* bias;  // [rows], or null
  Clamp clamp;

  __device__ T operator()(float sum, int row) const {
    T v;
    narrow(limit(sum + (bias ? widen(__ldg(bias + row)) : 0.f), clamp), &v);
    return v;
  }
};

// Where the sums of a tile go; those past the last token, or from row `rows` on, are dropped.
template <typename T, typename Output>
class Store {
 public:
  __device__ Store(const Output& out, const Finish<T>& finish, int first_token, int first_row,
                   int rows)
      : out_(out),
        finish_(finish),
        first_token_(first_token),
        first_row_(first_row),
        rows_(rows),
        pairs_(first_row % 2 == 0 && out.pairs()) {}

  // Where a token of the tile begins in y; null past the last.
  __device__ T* token(int t) const {
    const int token = first_token_ + t;
    return token < out_.tokens ? out_.at(token) : nullptr;
  }
  __device__ void operator()(T* y, int r, float sum) const {
    const int row = first_row_ + r;
    if (y && row < rows_) y[row * out_.step()] = finish_(sum, row);
  }
  // Of rows r, which is even, and r + 1: in one piece where they are neighbours in y.
  __device__ void operator()(T* y, int r, float a, float b) const {
    const int row = first_row_ + r;
    if (pairs_ && row + 1 < rows_) {
      if (y) *reinterpret_cast<Pair*>(y + row) = {finish_(a, row), finish_(b, row + 1)};
    } else {
      (*this)(y, r, a);
      (*this)(y, r + 1, b);
    }
  }

  // The same for 16-bit elements where a thread has other rows before than it writes: the bias of a
  // row, what becomes of two of its sums, and elements of rows r, which is even, and r + 1.
  __device__ float bias(int r) const {
    const int row = first_row_ + r;
    return finish_.bias && row < rows_ ? widen(__ldg(finish_.bias + row)) : 0.f;
  }
  __device__ uint32_t finished(float a, float b, float bias) const {
    Pair both;
    narrow(limit(a + bias, finish_.clamp), &both.first);
    narrow(limit(b + bias, finish_.clamp), &both.second);
    return std::bit_cast<uint32_t>(both);
  }
  __device__ void put(T* y, int r, uint32_t elements) const {
    const int row = first_row_ + r;
    const Pair both = std::bit_cast<Pair>(elements);
    if (!y) return;
    if (pairs_ && row + 1 < rows_) {
      *reinterpret_cast<Pair*>(y + row) = both;
    } else {
      if (row < rows_) y[row * out_.step()] = both.first;
      if (row + 1 < rows_) y[(row + 1) * out_.step()] = both.second;
    }
  }

 private:
  struct alignas(2 * sizeof(T)) Pair {
    T first, second;
  };

  const Output& out_;
  const Finish<T>& finish_;
  int first_token_, first_row_, rows_;
  bool pairs_;
};

}  // namespace sparseprune::cuda
