// Which element of a matrix lies in which register of which lane of a warp, for
// mma.sync.m16n8k16 (C [16, 8] += A [16, 16] B [16, 8], 16-bit A and B, float C) and for
// ldmatrix.x4; and for mma.sp::ordered_metadata.m16n8k32, whose A [16, 32] is 2:4 and given as its
// values [16, 16] and their places. From the PTX ISA, "Matrix fragments for mma.m16n8k16", "Matrix
// fragments for sparse mma.m16n8k32" and "ldmatrix". Index maths alone: device code and the CPU
// tests share it.
#pragma once
#include <cstdint>

namespace sparseprune::mma {

constexpr int kM = 16, kN = 8, kK = 16, kLanes = 32;
constexpr int kARegs = 4, kBRegs = 2;  // 32-bit registers of a lane, two elements each
constexpr int kCRegs = 4;              // floats of a lane

struct Place {
  int row, col;
};

// Element i (0 to 7) of a lane's A; register i / 2.
constexpr Place a_place(int lane, int i) {
  return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
// Element i (0 to 3) of a lane's B as [k, n]; register i / 2.
constexpr Place b_place(int lane, int i) { return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4}; }
// Float i (0 to 3) of a lane's C. Floats 2 j and 2 j + 1 are neighbours in a row.
constexpr Place c_place(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// ldmatrix.x4 loads four 8 x 8 matrices of 16-bit elements. Lane l brings the address of row l % 8
// of matrix l / 8, and gets in register j elements (l / 4, 2 (l % 4)) and the next of matrix j.
constexpr Place loaded_place(int lane, int i) { return {lane / 4, lane % 4 * 2 + i}; }

// The row of a tile [rows, k] and the group of 8 columns that a lane brings, so that registers 0
// to 3 are the A fragment of rows [0, 16) and columns [0, 16).
constexpr Place a_address(int lane) { return {lane % 16, lane / 16}; }
// The same for B^T as a tile [n, k]: registers 0 and 1 are the B fragment of rows [0, 8) of the
// tile, 2 and 3 that of rows [8, 16).
constexpr Place b_address(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// --- mma.sp

constexpr int kSparseK = 32, kSparseBRegs = 4;  // the values are an A of mma.m16n8k16, C is its C

// Element i (0 to 7) of a lane's B as [k, n]; register i / 2.
constexpr Place sparse_b_place(int lane, int i) {
  return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}
// The row of a tile [n, k] and the group of 8 columns that a lane brings to ldmatrix, so that
// registers 0 to 3 are the B fragment of rows [0, 8) and columns [0, 32).
constexpr Place sparse_b_address(int lane) { return {lane % 8, lane / 8}; }

// Of four lanes, selector 0 reads the metadata of the first two. Bits 4 j to 4 j + 3 (j 0 to 7) are
// two places, the lower first, of the group of 4 columns that begins there:
constexpr Place metadata_place(int lane, int j) {
  return {lane / 4 + j / 4 * 8, lane % 2 * 16 + j % 4 * 4};
}
// A lane's metadata from the places of 32 columns of row lane / 4, and of the row 8 further on.
constexpr uint32_t metadata(int lane, uint32_t row, uint32_t row_8) {
  return lane % 2 ? row >> 16 | (row_8 & 0xffff0000u) : (row & 0xffffu) | row_8 << 16;
}

}  // namespace sparseprune::mma
