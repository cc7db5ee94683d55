// The fragments of mma_fragments.h against the PTX manual's tables, ldmatrix, and the banks of
// tiles (block_index.h, nm_index.h).
#include <set>

#include "check.h"
#include "kernels/cuda/block_index.h"
#include "kernels/cuda/nm_index.h"
#include "through_ldmatrix.h"

namespace {

using namespace sparseprune;
using namespace sparseprune::block;

bool operator==(mma::Place a, mma::Place b) { return a.row == b.row && a.col == b.col; }

// As the PTX ISA words it: "Matrix Fragments for mma.m16n8k16 with floating point type".
void check_fragments() {
  std::snprintf(running, sizeof running, "mma fragments");
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, in_group = lane & 3;
    for (int i = 0; i < 8; ++i) {
      const bool upper = i < 2 || (i >= 4 && i < 6);
      const mma::Place a{upper ? group : group + 8,
                         i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8};
      expect(mma::a_place(lane, i) == a, "A");
    }
    for (int i = 0; i < 4; ++i) {
      const mma::Place b{i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, group};
      expect(mma::b_place(lane, i) == b, "B");
      const mma::Place c{i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
      expect(mma::c_place(lane, i) == c, "C");
    }
  }
}

// "Matrix Fragments for sparse mma.m16n8k32 with .f16 and .bf16 types": B continues that of
// mma.m16n8k16; of metadata with sparsity selector 0, lane 4 g has in its low 16 bits columns 0 to
// 15 of row g, in its high bits those of row g + 8, and lane 4 g + 1 has columns 16 to 31.
void check_sparse_fragments() {
  std::snprintf(running, sizeof running, "mma.sp fragments");
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, in_group = lane & 3;
    for (int i = 0; i < 8; ++i) {
      const mma::Place b{in_group * 2 + (i & 1) + 8 * (i >> 1), group};
      expect(mma::sparse_b_place(lane, i) == b, "B");
      const mma::Place c = mma::sparse_b_place(lane, i);
      expect(
          through_ldmatrix(mma::sparse_b_address, lane, i / 2, i % 2) == mma::Place{c.col, c.row},
          "B by ldmatrix");
    }
    if (in_group > 1) continue;  // not read by selector 0
    for (int bit = 0; bit < 32; bit += 4) {
      const mma::Place e{bit < 16 ? group : group + 8, 16 * in_group + bit % 16};
      expect(mma::metadata_place(lane, bit / 4) == e, "metadata");
      const uint32_t row = uint32_t{0b1001} << e.col, other = ~row;
      const bool upper = bit >= 16;
      const uint32_t made = mma::metadata(lane, upper ? other : row, upper ? row : other);
      expect((made >> bit & 15) == 0b1001, "metadata from the places of two rows");
    }
  }
}

void check_loads() {
  std::snprintf(running, sizeof running, "ldmatrix addresses");
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 2; ++i) {
        expect(through_ldmatrix(mma::a_address, lane, j, i) == mma::a_place(lane, 2 * j + i), "A");
        const mma::Place b = mma::b_place(lane, j % 2 * 2 + i);
        const mma::Place in_tile{b.col + j / 2 * mma::kN, b.row};
        expect(through_ldmatrix(mma::b_address, lane, j, i) == in_tile, "B");
      }
}

// Eight lanes that access 16 bytes at once must meet eight different groups of four banks.
void check_banks() {
  std::snprintf(running, sizeof running, "banks");
  const auto eight = [](const auto& byte_of, const char* what) {
    for (int phase = 0; phase < 4; ++phase) {
      std::set<int> banks;
      for (int lane = 8 * phase; lane < 8 * phase + 8; ++lane)
        banks.insert(byte_of(lane) / kChunkBytes % kChunks);
      expect(banks.size() == 8, what);
    }
  };
  for (int k = 0; k < 4; ++k) {
    eight(
        [&](int lane) {
          const mma::Place p = mma::a_address(lane);
          return chunk_byte(p.row, 2 * k + p.col);
        },
        "A");
    eight(
        [&](int lane) {
          const mma::Place p = mma::b_address(lane);
          return chunk_byte(p.row, 2 * k + p.col);
        },
        "B");
  }
  eight([](int lane) { return chunk_byte(copy_row(lane), copy_chunk(lane)); }, "copies");
  for (int k = 0; k < 2; ++k) {
    eight(
        [&](int lane) {
          const mma::Place p = mma::a_address(lane);
          return nm::value_byte(p.row, 2 * k + p.col);
        },
        "values of mma.sp");
    eight(
        [&](int lane) {
          const mma::Place p = mma::sparse_b_address(lane);
          return chunk_byte(p.row, 4 * k + p.col);
        },
        "B of mma.sp");
  }
  eight([](int lane) { return nm::value_byte(lane / nm::kValueChunks, lane % nm::kValueChunks); },
        "copies of values");
}

}  // namespace

void check_mma_fragments() {
  check_fragments();
  check_sparse_fragments();
  check_loads();
  check_banks();
}
