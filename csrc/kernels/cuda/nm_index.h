// How a layer of 2:4 is cut into thread blocks and stages, and where everything lies in shared
// memory. Index maths alone: device code and the CPU tests share it.
//
// A thread block computes `kRows` outputs of `kTokens` tokens (or output pixels). It walks the
// columns in slabs of 128 bytes of x (64 columns, of float 32), one or more to a stage:
//
//   x tile [kTokens, 128 bytes]     chunks.h
//   values [kRows, 64 bytes]        half as many as columns
//   places [kRows, 8 bytes]         2 bits for each of them (of float the first 4 bytes)
#pragma once
#include "kernels/cuda/chunks.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune::nm {

using namespace cuda;

constexpr int kValueBytes = kRowBytes / 2, kValueChunks = kValueBytes / kChunkBytes;
constexpr int kPlaceBytes = 8;  // of a row, in shared memory

// Of a row in a slab: values, bytes of places.
template <typename T>
constexpr int kValues = kStage<T> / 2;
template <typename T>
constexpr int kSlabPlaces = kValues<T> / 4;

// Byte of the values where chunk `chunk` of row `row` lies. Two rows share 128 bytes, and eight
// neighbouring rows of one chunk are in different banks.
constexpr int value_byte(int row, int chunk) {
  const int line = row / 2, place = row % 2 * kValueChunks + (chunk ^ line % kValueChunks);
  return line * kRowBytes + place * kChunkBytes;
}

// Sizes of one kind of thread block. The warps share out tokens, rows and k in that order.
template <int rows, int tokens, int warps_rows, int warps_tokens, int warps_k, int slabs,
          int stages>
struct Tile {
  static constexpr int kRows = rows, kTokens = tokens, kSlabs = slabs, kStages = stages;
  static constexpr int kWarpsRows = warps_rows, kWarpsTokens = warps_tokens, kWarpsK = warps_k;
  static constexpr int kWarpRows = rows / warps_rows, kWarpTokens = tokens / warps_tokens;
  static constexpr int kThreads = 32 * warps_rows * warps_tokens * warps_k;
  // Thread blocks of a multiprocessor that registers must suffice for.
  static constexpr int kResident = kThreads > 128 ? 1 : 2;
  static constexpr int kXBytes = tokens * kRowBytes;
  static constexpr int kPlacesAt = kXBytes + rows * kValueBytes;
  static constexpr int kSlabBytes = kPlacesAt + rows * kPlaceBytes;
  static constexpr int kStageBytes = slabs * kSlabBytes;
  // A thread copies the same chunk of values of every kValueRows-th row.
  static constexpr int kValueRows = kThreads / kValueChunks;
  static_assert(kWarpRows % mma::kM == 0 && kWarpTokens % mma::kN == 0, "whole fragments");
  static_assert(rows % kValueRows == 0 && tokens % copy_rows(kThreads) == 0, "copies cover tiles");
  static_assert(rows <= kThreads && tokens <= kThreads, "a thread for the places of a row");
  static_assert(kSlabBytes % kRowBytes == 0, "swizzles start anew in every slab");
};

// Few tokens read the weights once, in many small strips whose warps share k.
using Narrow = Tile<32, 16, 1, 1, 4, 2, 6>;
using Small = Tile<64, 64, 1, 2, 2, 1, 6>;
using Medium = Tile<128, 128, 2, 2, 1, 1, 3>;
using Large = Tile<256, 128, 4, 2, 1, 1, 4>;
constexpr int64_t kLargeOutputs = int64_t{1} << 22;  // 128 thread blocks of Large

// Where a thread block works: group of channels, its first row and the end of the group's rows,
// first token.
struct Strip {
  int group, row, end, token;
};
constexpr int strips_of(int tile_rows, int rows, int groups) {
  return (rows / groups + tile_rows - 1) / tile_rows * groups;
}
// Strips come first, so that thread blocks that run at the same time read the same x.
template <typename Tile>
constexpr Strip strip_of(int thread_block, int rows, int groups) {
  const int strips = strips_of(Tile::kRows, rows, groups), strip = thread_block % strips;
  const int per_group = strips / groups, each = rows / groups, group = strip / per_group;
  return {group, group * each + strip % per_group * Tile::kRows, (group + 1) * each,
          thread_block / strips * Tile::kTokens};
}

// The share of a warp: first token and row of the tile, and which of kWarpsK parts of k.
struct Share {
  int token, row, k;
};
template <typename Tile>
constexpr Share share_of(int warp) {
  const int t = warp % Tile::kWarpsTokens, rest = warp / Tile::kWarpsTokens;
  return {t * Tile::kWarpTokens, rest % Tile::kWarpsRows * Tile::kWarpRows,
          rest / Tile::kWarpsRows};
}

// A lane's sums 2 h and 2 h + 1 are one row of two tokens. Lanes of even and odd rows trade one, so
// that each has one token of two rows, which are neighbours in y: the first of them, and the token.
constexpr int kTradeLanes = 4;  // between those that trade
constexpr bool gives_first(int lane) { return lane / 4 % 2 == 1; }
constexpr mma::Place traded_place(int lane, int h) {
  const mma::Place c = mma::c_place(lane, 2 * h);
  return {c.row - gives_first(lane), c.col + gives_first(lane)};
}

}  // namespace sparseprune::nm
