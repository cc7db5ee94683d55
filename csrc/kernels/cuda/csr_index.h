// How thread blocks and warps share a Linear layer in the csr layout "rows". Index maths alone:
// device code and the CPU tests share it.
//
// Few tokens: a warp per row, lanes share its nonzeros, 16 bytes of values at a time. Rows begin
// anywhere, so a warp starts at the last multiple of 16 bytes before its row and leaves out what
// is not the row's (Gale et al., Sparse GPU kernels for deep learning, SC 2020).
//
// Many tokens: a thread block computes 64 rows of a tile of tokens. A slab of 128 columns of x lies
// in shared memory, tokens innermost, so that a nonzero is one load of neighbouring tokens per lane
// and an FMA for each; a warp keeps the sums of its eight rows in registers over all slabs.
#pragma once
#include <cstdint>

namespace sparseprune::csr {

constexpr int kLanes = 32;

// --- few tokens

constexpr int kMostFew = 8;  // tokens
constexpr int kFewWarps = 32;
template <typename T>
constexpr uint32_t kVector = 16 / sizeof(T);

// The first vector of a row, and one past the last. There are less than 2^31 nonzeros.
template <typename T>
constexpr uint32_t first_vector(uint32_t begin) {
  return begin / kVector<T>;
}
template <typename T>
constexpr uint32_t end_vector(uint32_t end) {
  return (end + kVector<T> - 1) / kVector<T>;
}
// Element i of a vector is the row's; before its begin the difference is huge.
template <typename T>
constexpr bool inside(uint32_t vector, uint32_t i, uint32_t begin, uint32_t end) {
  return vector * kVector<T> + i - begin < end - begin;
}
// Whether the buffers, of so many nonzeros, hold a whole vector.
template <typename T>
constexpr bool whole(uint32_t vector, uint32_t stored) {
  return (vector + 1) * kVector<T> <= stored;
}

// --- many tokens

constexpr int kSlab = 128;  // columns
constexpr int kOwnRows = 8, kManyWarps = 8, kTileRows = kOwnRows * kManyWarps;
constexpr int kManyThreads = kManyWarps * kLanes;
constexpr int kPiece = 4;  // columns of a token that a thread copies

// kEach: neighbouring tokens of a lane.
template <int kEach>
struct Tile {
  static constexpr int kTokens = kEach * kLanes;
  static constexpr int kSlabFloats = kSlab * kTokens;
  static constexpr int kPieces = kSlab / kPiece * kTokens;  // of a slab
  static_assert(kPieces % kManyThreads == 0, "every thread copies as much");
};

// Where a thread block works.
struct Corner {
  int64_t row, token;
};
// Rows come first, so that thread blocks that run at the same time read the same x.
template <typename Tile>
constexpr Corner corner_of(int64_t thread_block, int64_t rows) {
  const int64_t tall = (rows + kTileRows - 1) / kTileRows;
  return {thread_block % tall * kTileRows, thread_block / tall * Tile::kTokens};
}

// Piece p of a slab: its token in the tile and its first column. Lanes have neighbouring tokens,
// so that they write into different banks.
struct Piece {
  int token, column;
};
template <typename Tile>
constexpr Piece piece_of(int p) {
  return {p % Tile::kTokens, p / Tile::kTokens * kPiece};
}
template <typename Tile>
constexpr int place_of(int column, int token) {
  return column * Tile::kTokens + token;
}

}  // namespace sparseprune::csr
