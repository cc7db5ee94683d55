// How tiles lie in shared memory, and what output pixels and columns of W read. Index maths alone:
// device code and the CPU tests share it.
//
// A row of a tile is 128 bytes of k in chunks of 16; chunk c of row r lies at place c ^ (r % 8) of
// its row, so that eight neighbouring rows of one chunk are in different banks: ldmatrix and
// 16-byte loads conflict-free.
#pragma once

namespace sparseprune::cuda {

constexpr int kRowBytes = 128, kChunkBytes = 16, kChunks = kRowBytes / kChunkBytes;

// Elements of a chunk, columns of a row.
template <typename T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStage = kRowBytes / static_cast<int>(sizeof(T));

// Byte of a tile where chunk `chunk` of row `row` lies.
constexpr int chunk_byte(int row, int chunk) {
  return row * kRowBytes + (chunk ^ row % kChunks) * kChunkBytes;
}

// A thread copies the same chunk of every copy_rows-th row of a tile.
constexpr int copy_rows(int threads) { return threads / kChunks; }
constexpr int copy_chunk(int thread) { return thread % kChunks; }
constexpr int copy_row(int thread) { return thread / kChunks; }

struct Pixel {
  int image, row, col;
};
constexpr Pixel pixel_of(int token, int out_h, int out_w) {
  const int pixels = out_h * out_w;
  return {token / pixels, token % pixels / out_w, token % out_w};
}

// What column c of the weight reads: channel of its group, and tap.
struct Read {
  int channel, ky, kx;
};
constexpr Read read_of(int c, int taps, int channels, int kernel_h, int kernel_w) {
  const int window = kernel_h * kernel_w;
  const int channel = taps == 1 ? c / window : c % channels;
  const int tap = taps == 1 ? c % window : c / channels;
  return {channel, tap / kernel_w, tap % kernel_w};
}

}  // namespace sparseprune::cuda
