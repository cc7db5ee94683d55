// How warps share a bitmask layer, and where each lane finds its values. Index maths alone: device
// code and the CPU tests share it.
//
// A thread block computes the 64 rows of a unit, or a cluster of thread blocks does. Their warps
// share out the columns in slabs of 32, each a strip of neighbouring slabs, whose values lie in one
// piece. Lane l decodes the mask of column l of a slab; then lanes multiply, each eight
// neighbouring rows of a column, whose values are neighbours too.
//
// Values come through a ring of chunks in shared memory, copied 16 bytes per lane. The first bytes
// of the ring are repeated behind its end, so that a lane's eight values never wrap.
#pragma once
#include <bit>
#include <cstdint>

#include "formats/bitmask.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune::bitmask {

constexpr int kLanes = 32;
constexpr int kRows = Bitmask::kRows;
constexpr int kOwn = 8;        // rows of a lane
constexpr int kSlab = kLanes;  // columns

constexpr uint32_t kCopyBytes = 16, kChunkBytes = kLanes * kCopyBytes, kChunks = 8;
constexpr uint32_t kRingBytes = kChunks * kChunkBytes;

// Columns of which all values are in the ring before they are multiplied, whatever the sparsity.
template <typename T>
constexpr int kPart = kRingBytes / 2 / (kRows * sizeof(T));

// Half of a decoded column: its bits, and the byte of the strip where its values begin.
struct Half {
  uint32_t bits, start;
};
struct alignas(16) Column {
  Half half[2];  // rows 0 to 31, 32 to 63
};
constexpr int bits_of(uint32_t low, uint32_t high) {
  return std::popcount(low) + std::popcount(high);
}
constexpr Column column_of(uint32_t low, uint32_t high, uint32_t start, uint32_t size) {
  return {{{low, start}, {high, start + std::popcount(low) * size}}};
}

// Which of the rows from `first` on have a value in a column, and the byte where the first of those
// lies.
struct Own {
  uint32_t kept;  // bit i: row first + i; bits from kOwn on are other lanes'
  uint32_t byte;
};
constexpr Own own_of(const Column& column, int first, uint32_t size) {
  const Half& h = column.half[first / 32];
  const int shift = first % 32;
  return {h.bits >> shift, h.start + std::popcount(h.bits & ((1u << shift) - 1)) * size};
}

// The slabs of a warp: [begin, end) of all.
struct Strip {
  int begin, end;
};
constexpr Strip strip_of(int warp, int warps, int slabs) {
  return {static_cast<int>(int64_t{warp} * slabs / warps),
          static_cast<int>(int64_t{warp + 1} * slabs / warps)};
}
constexpr int slabs_of(int64_t cols) { return static_cast<int>((cols + kSlab - 1) / kSlab); }

// Thread blocks of a unit's cluster: as many as keep all multiprocessors busy, a power of two.
constexpr int kMostSplits = 8;
constexpr int splits_for(int64_t units, int processors, int slabs) {
  int splits = 1;
  while (2 * splits <= kMostSplits && 2 * splits * units <= processors && 2 * splits <= slabs)
    splits *= 2;
  return splits;
}

// Bytes count from the last multiple of kCopyBytes at or before the strip's first value. 32 bits
// hold them: 2^31 weights are shared out to 8 warps, or there is one slab per warp.
constexpr uint32_t chunk_of(uint32_t byte) { return byte / kChunkBytes; }
constexpr uint32_t chunks_to(uint32_t byte) { return (byte + kChunkBytes - 1) / kChunkBytes; }
// Chunks to have asked for, of a strip of so many bytes, when all before `begin` are multiplied.
constexpr uint32_t ask_until(uint32_t bytes, uint32_t begin) {
  const uint32_t all = chunks_to(bytes), room = chunk_of(begin) + kChunks;
  return all < room ? all : room;
}
// How many of the latest chunks may be under way, where at most `pending` may be: the instruction
// wants a constant.
constexpr uint32_t waited_for(uint32_t pending) {
  return pending >= 6 ? 6 : pending >= 4 ? 4 : pending >= 2 ? 2 : pending;
}
constexpr uint32_t place_of(uint32_t byte) { return byte % kRingBytes; }
// Whether a lane's piece of a chunk is repeated behind the ring.
constexpr uint32_t kRepeatedBytes = kOwn * 4;
constexpr bool repeated(uint32_t chunk, int lane) {
  return chunk % kChunks == 0 && lane < static_cast<int>(kRepeatedBytes / kCopyBytes);
}

// What a warp has to itself in shared memory: ring and decoded slab; its sums are where the ring
// was.
constexpr int kRound = 8;  // most tokens whose sums are added up at once
struct alignas(16) Warp {
  char ring[kRingBytes + kRepeatedBytes];
  Column columns[kSlab];
};
static_assert(kRingBytes >= kRows * kRound * sizeof(float), "sums fit where the ring was");
// Of a thread block: its warps', and a number of each.
template <typename Multiply>
constexpr int shared_bytes(int warps) {
  return warps * static_cast<int>(sizeof(typename Multiply::Shared) + sizeof(int));
}

// --- FMA: quarters of the warp multiply four columns at a time.
//
//   lanes 0 to 7     column c        rows 8 l .. 8 l + 7
//   lanes 8 to 15    column c + 1    rows 8 (l - 8) ..

constexpr int kPer = kRows / kOwn;  // lanes of a column
constexpr int kAtOnce = kLanes / kPer;
constexpr int first_row(int lane) { return lane % kPer * kOwn; }
constexpr int own_column(int lane) { return lane / kPer; }

// --- Tensor cores, for 16-bit types: W is A of mma.m16n8k16 (mma_fragments.h), x is B.
//
// A step is 16 columns. Its 64 rows are four fragments, of which a lane holds eight rows of four
// columns. Which row of a fragment stands for which row of the unit, and which k for which column,
// is free as long as A, B and C agree: here a lane's rows are neighbours, and so are its columns.

constexpr int kFragments = kRows / mma::kM;
constexpr int kStep = mma::kK;  // columns
constexpr int kStepOwn = 4;     // columns of a lane
constexpr int kTile = mma::kN;  // tokens

constexpr int unit_row(int fragment, int row) { return row % 8 * kOwn + 2 * fragment + row / 8; }
constexpr int step_column(int k) { return k % 8 / 2 * kStepOwn + k / 8 * 2 + k % 2; }

// A lane's rows and columns begin there; it brings x of those columns for one token of a tile.
constexpr int step_row(int lane) { return unit_row(0, mma::a_place(lane, 0).row); }
constexpr int step_first(int lane) { return step_column(mma::a_place(lane, 0).col); }
constexpr int step_token(int lane) { return mma::b_place(lane, 0).col; }
// The register of a fragment that has own row i (0 to 7) of columns 2 p and 2 p + 1.
constexpr int fragment_of(int i) { return i / 2; }
constexpr int register_of(int i, int p) { return i % 2 + 2 * p; }

}  // namespace sparseprune::bitmask
