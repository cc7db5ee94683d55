// How the kernel of 64 x 64 blocks for wgmma shares out work and shared memory, what a descriptor
// of wgmma says, and which of its sums a thread holds. Index maths alone: device code and the CPU
// tests share it. From the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// A thread block stays for several tiles of 64 rows (a row of blocks) by kTokens tokens. One warp
// copies block after block of all its tiles into a ring of stages,
//
//   w tile [64 rows, 64 columns]       a block as it is stored
//   x tile [kTokens, 64 columns]       what its columns read
//
// in rows of 128 bytes, swizzled as in chunks.h, which is the 128-byte swizzle of copies and of
// wgmma. Two warpgroups take turns with the tiles: one multiplies while the other writes out.
#pragma once
#include <cstdint>

#include "kernels/cuda/chunks.h"
#include "kernels/cuda/mma_fragments.h"

namespace sparseprune::wgmma {

using namespace cuda;

constexpr int kSide = 64;                     // of a block: the m of wgmma, and 128 bytes of k
constexpr int kM = 64, kN = 128, kK = 16;     // of one product
constexpr int kSums = kM * kN / 128;          // of a thread
constexpr int kWarpgroup = 128, kTakers = 2;  // threads; warpgroups that multiply
constexpr int kThreads = kTakers * kWarpgroup + 32;  // and the warp that copies
constexpr int kWarps = kWarpgroup / 32;              // of a warpgroup, each frees a stage by itself
constexpr int kAtomBytes = 8 * kRowBytes;            // after which the swizzle repeats
constexpr int kMostBytes = 227 << 10;                // of shared memory of a thread block

template <int tokens>
struct Tile {
  static constexpr int kTokens = tokens, kParts = tokens / kN;
  static constexpr int kWBytes = kSide * kRowBytes, kXBytes = tokens * kRowBytes;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kBarrierBytes = 16;        // of a stage: that it is full, that it is empty
  static constexpr int kTurnBytes = 8 * kTakers;  // barriers again
  static constexpr int kStages =
      (kMostBytes - kAtomBytes - kTurnBytes) / (kStageBytes + kBarrierBytes);
  // Stages begin at an atom, barriers follow them.
  static constexpr int kBytes = kAtomBytes + kStages * (kStageBytes + kBarrierBytes) + kTurnBytes;
  static_assert(tokens % kN == 0 && tokens <= 256, "whole products, and one copy");
  static_assert(kBytes <= kMostBytes && kStages >= 4);
};

// Tile number `tile`: rows of blocks come first, so that thread blocks that run at the same time
// read the same x.
struct Place {
  int block_row, token;
};
template <typename Tile>
constexpr Place place_of(int tile, int block_rows) {
  return {tile % block_rows, tile / block_rows * Tile::kTokens};
}

// Where copy number `i` of a thread block goes, and the parity of its round through the ring.
struct Slot {
  int stage;
  uint32_t parity;
};
constexpr Slot slot_of(int i, int stages) {
  return {i % stages, static_cast<uint32_t>(i / stages & 1)};
}

// The parity of the phase of a warpgroup's barrier of turns that ends before turn `turn` of all,
// its own: the first warpgroup's first turn waits for none.
constexpr uint32_t turn_parity(int turn) { return static_cast<uint32_t>((turn - 1) / kTakers & 1); }

// What wgmma is told of an operand with k innermost, in rows of 128 bytes that begin at `address`
// of shared memory or some columns further: from the address on, in units of 16 bytes, 14 bits each
// of where it begins, of what swizzled layouts do not read, and of the way to the next eight rows;
// the uppermost bits say which swizzle.
constexpr uint64_t descriptor(uint32_t address) {
  return (uint64_t{address} >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{kAtomBytes >> 4} << 32 |
         uint64_t{1} << 62;
}
// `k` columns further.
constexpr uint64_t further(uint64_t descriptor, int k) { return descriptor + (k * 2 >> 4); }

// Sum i of a thread of the warpgroup, as row and column of the product.
constexpr mma::Place sum_place(int thread, int i) {
  const mma::Place in_warp = mma::c_place(thread % 32, i % 4);
  return {thread / 32 * 16 + in_warp.row, i / 4 * mma::kN + in_warp.col};
}

}  // namespace sparseprune::wgmma
