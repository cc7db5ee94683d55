// How a block layer is cut into thread blocks and stages, and where everything lies in shared
// memory. Index maths alone: device code and the CPU tests share it.
//
// A thread block computes `kRows` outputs (a strip of one row of blocks) of `kTokens` tokens (or
// output pixels). The stored blocks of that row, side by side, are a dense matrix [rows, k]; it is
// walked in stages of 128 bytes of k, whatever the side of a block. A stage holds
//
//   x tile [kTokens, 128 bytes]    what the columns of those k read
//   w tile [kRows, 128 bytes]      the weights
//
// in chunks of 16 bytes (chunks.h).
#pragma once
#include <cstdint>

#include "kernels/cuda/chunks.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune::block {

using namespace cuda;

constexpr int kThreads = 128, kWarps = kThreads / 32, kCopyRows = copy_rows(kThreads);
constexpr int kResident = 2;  // thread blocks of a multiprocessor that registers must suffice for

// Place k of a row of blocks: which of its blocks, and which column of that block.
struct BlockColumn {
  int block, col;
};
constexpr BlockColumn block_column(int k, int side) { return {k / side, k % side}; }

// Sizes of one kind of thread block. The warps share out tokens, rows and k in that order.
template <int side, int rows, int tokens, int warps_tokens, int warps_rows, int warps_k, int stages>
struct Tile {
  static constexpr int kSide = side, kRows = rows, kTokens = tokens, kStages = stages;
  static constexpr int kWarpsTokens = warps_tokens, kWarpsRows = warps_rows, kWarpsK = warps_k;
  static constexpr int kWarpTokens = tokens / warps_tokens, kWarpRows = rows / warps_rows;
  static constexpr int kStrips = side / rows;  // of a row of blocks
  static constexpr int kStageBytes = (tokens + rows) * kRowBytes;
  static_assert(side % rows == 0, "a strip is part of one row of blocks");
  static_assert(warps_tokens * warps_rows * warps_k == kWarps, "every warp has a share");
  static_assert(kWarpTokens % mma::kM == 0 && kWarpRows % (2 * mma::kN) == 0,
                "a warp's share is whole fragments, loaded two n tiles at a time");
  static_assert(tokens % kCopyRows == 0 && rows % kCopyRows == 0, "copies cover the tiles");
};

// Where a thread block works: row of blocks, first row inside of it, first token.
struct Strip {
  int block_row, row, token;
};
// Strips come first, so that thread blocks that run at the same time read the same x.
template <typename Tile>
constexpr Strip strip_of(int thread_block, int rows) {
  const int block_rows = (rows + Tile::kSide - 1) / Tile::kSide;
  const int strips = block_rows * Tile::kStrips, strip = thread_block % strips;
  return {strip / Tile::kStrips, strip % Tile::kStrips * Tile::kRows,
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

// Tokens enough for large tiles, or few: then many strips read the weights at once.
template <int side>
struct Tiles;
template <>
struct Tiles<16> {
  using Many = Tile<16, 16, 128, 4, 1, 1, 4>;
  using Few = Tile<16, 16, 16, 1, 1, 4, 8>;
};
template <>
struct Tiles<32> {
  using Many = Tile<32, 32, 128, 4, 1, 1, 4>;
  using Few = Tile<32, 16, 16, 1, 1, 4, 8>;
};
template <>
struct Tiles<64> {
  using Many = Tile<64, 64, 128, 2, 2, 1, 3>;
  using Few = Tile<64, 16, 16, 1, 1, 4, 8>;
};
constexpr int kFewTokens = 64;

}  // namespace sparseprune::block
