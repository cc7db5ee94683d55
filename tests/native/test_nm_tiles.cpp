// The CUDA kernels of 2:4 on the CPU: whole layers through a model of a thread block that knows
// shared memory, ldmatrix and mma.sp only by kernels/cuda/mma_fragments.h and nm_index.h.
#include <map>

#include "cuda_layers.h"
#include "formats/nm.h"
#include "kernels/cuda/nm_index.h"
#include "through_ldmatrix.h"

namespace {

using namespace sparseprune;
using namespace sparseprune::nm;

struct Half {
  uint16_t bits;
};

using Tensor = std::vector<float>;
using Sums = std::map<std::pair<int, int>, double>;  // token and row of the tile

// One slab of a stage as its threads copy it; every place is written exactly once. Elements count
// as `Type` in bytes.
template <typename Type, typename Tile>
class Slab {
 public:
  static constexpr int kSize = static_cast<int>(sizeof(Type));

  // x(t, column) is what token t of the tile reads, 0 past the last column.
  template <typename X>
  Slab(const Nm<float>& w, const Strip& strip, int slab, const X& x)
      : elements_(Tile::kPlacesAt / kSize, 0.f),
        written_(elements_.size(), 0),
        places_(Tile::kRows * kPlaceBytes, 0) {
    const int slabs = static_cast<int>(w.row_values()) / kValues<Type>;
    const bool live = slab < slabs;
    const auto row = [&](int r) { return int64_t{std::min(strip.row + r, strip.end - 1)}; };
    for (int thread = 0; thread < Tile::kThreads; ++thread) {
      const int chunk = copy_chunk(thread);
      for (int t = copy_row(thread); t < Tile::kTokens; t += copy_rows(Tile::kThreads))
        for (int i = 0; i < kChunk<Type>; ++i) {
          const int column = slab * kStage<Type> + chunk * kChunk<Type> + i;
          put(chunk_byte(t, chunk) / kSize + i, live ? x(t, column) : 0.f);
        }
      const int part = thread % kValueChunks, value = slab * kValues<Type> + part * kChunk<Type>;
      for (int r = thread / kValueChunks; r < Tile::kRows; r += Tile::kValueRows)
        for (int i = 0; i < kChunk<Type>; ++i)
          put((Tile::kXBytes + value_byte(r, part)) / kSize + i,
              live ? w.values[row(r) * w.row_values() + value + i] : 0.f);
      if (thread >= Tile::kRows) continue;
      const int byte = std::min(slab, slabs - 1) * kSlabPlaces<Type>;
      for (int i = 0; i < kSlabPlaces<Type>; ++i)
        places_.at(thread * kPlaceBytes + i) = w.places[row(thread) * w.place_bytes() + byte + i];
    }
    bool once = true;
    for (const int count : written_) once = once && count == 1;
    expect(once, "every place of a slab is written once");
  }

  float x(int token, int column) const {
    return elements_.at(chunk_byte(token, column / kChunk<Type>) / kSize + column % kChunk<Type>);
  }
  float value(int row, int i) const {
    const int byte = Tile::kXBytes + value_byte(row, i / kChunk<Type>);
    return elements_.at(byte / kSize + i % kChunk<Type>);
  }
  uint32_t places(int row, int number) const {
    uint32_t all = 0;
    for (int i = 0; i < 4; ++i)
      all |= uint32_t{places_.at(row * kPlaceBytes + 4 * number + i)} << 8 * i;
    return all;
  }

 private:
  void put(int place, float v) {
    elements_.at(place) = v;
    ++written_.at(place);
  }

  Tensor elements_;
  std::vector<int> written_;
  std::vector<uint8_t> places_;
};

// mma.sp::ordered_metadata.m16n8k32 of a warp, from what its lanes hold. As the PTX ISA has it, the
// places of a group must ascend.
void multiply_sparse(const float (&a)[32][8], const float (&b)[32][8], const uint32_t (&e)[32],
                     double (&c)[32][4]) {
  float dense[16][32] = {}, right[32][8];
  int place[16][32];  // of the value that lies there
  float values[16][16];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 8; ++i) {
      const mma::Place at = mma::a_place(lane, i), from = mma::sparse_b_place(lane, i);
      values[at.row][at.col] = a[lane][i];
      right[from.row][from.col] = b[lane][i];
    }
  bool ordered = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (lane % 4 > 1) continue;  // selector 0
    for (int j = 0; j < 8; ++j) {
      const mma::Place at = mma::metadata_place(lane, j);
      const int first = e[lane] >> 4 * j & 3, second = e[lane] >> (4 * j + 2) & 3;
      ordered = ordered && first < second;
      place[at.row][at.col / 2] = first;
      place[at.row][at.col / 2 + 1] = second;
    }
  }
  expect(ordered, "places ascend");
  for (int r = 0; r < 16; ++r)
    for (int i = 0; i < 16; ++i) dense[r][i / 2 * 4 + place[r][i]] += values[r][i];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < mma::kCRegs; ++i) {
      const mma::Place at = mma::c_place(lane, i);
      double sum = 0;
      for (int k = 0; k < 32; ++k) sum += double{dense[at.row][k]} * right[k][at.col];
      c[lane][i] = sum;
    }
}

// One slab as the sparse tensor cores see it: 32 columns of it for the warps whose part of k they
// are. Sums end where a lane stores them.
template <typename Tile>
void multiply(const Slab<Half, Tile>& slab, int in_stage, Sums& sums) {
  constexpr int kSlabSteps = kStage<Half> / mma::kSparseK;
  constexpr int kMySteps = Tile::kSlabs * kSlabSteps / Tile::kWarpsK;
  for (int warp = 0; warp < Tile::kThreads / 32; ++warp)
    for (int half = 0; half < kSlabSteps; ++half) {
      const Share share = share_of<Tile>(warp);
      if ((in_stage * kSlabSteps + half) / kMySteps != share.k) continue;
      for (int m = 0; m < Tile::kWarpRows; m += mma::kM)
        for (int n = 0; n < Tile::kWarpTokens; n += mma::kN) {
          float a[32][8], b[32][8];
          uint32_t e[32];
          double c[32][4];
          for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 8; ++i) {
              const mma::Place p = through_ldmatrix(mma::a_address, lane, i / 2, i % 2);
              a[lane][i] = slab.value(share.row + m + p.row, 16 * half + p.col);
              const mma::Place q = through_ldmatrix(mma::sparse_b_address, lane, i / 2, i % 2);
              b[lane][i] = slab.x(share.token + n + q.row, 32 * half + q.col);
            }
            const int row = share.row + m + lane / 4;
            e[lane] = mma::metadata(lane, slab.places(row, half), slab.places(row + 8, half));
          }
          multiply_sparse(a, b, e, c);
          for (int lane = 0; lane < 32; ++lane)
            for (int h = 0; h < 2; ++h) {  // as lanes trade their sums
              const int partner = lane ^ kTradeLanes;
              const double got = c[partner][gives_first(partner) ? 2 * h : 2 * h + 1];
              const mma::Place p = traded_place(lane, h);
              const int t = share.token + n + p.col, r = share.row + m + p.row;
              sums[{t, r}] += gives_first(lane) ? got : c[lane][2 * h];
              sums[{t, r + 1}] += gives_first(lane) ? c[lane][2 * h + 1] : got;
            }
        }
    }
}

// The same for float, whose threads share out tokens and rows without fragments.
template <typename Tile>
void multiply(const Slab<float, Tile>& slab, int, Sums& sums) {
  for (int t = 0; t < Tile::kTokens; ++t)
    for (int r = 0; r < Tile::kRows; ++r)
      for (int i = 0; i < kValues<float>; ++i) {
        const int place = slab.places(r, 0) >> 2 * i & 3;
        sums[{t, r}] += double{slab.value(r, i)} * slab.x(t, i / 2 * 4 + place);
      }
}

// A whole layer by as many thread blocks as the launcher starts; y [tokens, rows]. x(token, group,
// column) is 0 past the last token or column.
template <typename Type, typename Tile, typename X>
std::vector<double> layer(const Dense& dense, int tokens, int groups, const X& x) {
  const Packed packed = pack_nm(dense, 2, 4);
  const Guarded values(packed.values, Against::high_page),
      places(packed.places, Against::high_page);
  const Nm<float> w{values.read_only(), places.read_only(), dense.rows, dense.cols, 2, 4};
  const int rows = static_cast<int>(dense.rows);
  const int slabs = static_cast<int>(w.row_values()) / kValues<Type>;
  const int tiles = (tokens + Tile::kTokens - 1) / Tile::kTokens;
  std::vector<double> y(static_cast<size_t>(tokens) * rows, NAN);
  for (int block = 0; block < strips_of(Tile::kRows, rows, groups) * tiles; ++block) {
    const Strip strip = strip_of<Tile>(block, rows, groups);
    Sums sums;
    for (int s = 0; s < (slabs + Tile::kSlabs - 1) / Tile::kSlabs * Tile::kSlabs; ++s)
      multiply(Slab<Type, Tile>(w, strip, s,
                                [&](int t, int c) { return x(strip.token + t, strip.group, c); }),
               s % Tile::kSlabs, sums);
    for (int t = 0; t < Tile::kTokens; ++t)
      for (int r = 0; r < Tile::kRows; ++r) {
        const int token = strip.token + t, row = strip.row + r;
        if (token >= tokens || row >= strip.end) continue;
        double& out = y.at(static_cast<size_t>(token) * rows + row);
        expect(std::isnan(out), "every output belongs to one thread block");
        out = sums[{t, r}];
      }
  }
  return y;
}

Dense two_of_four(Random& random, int64_t rows, int64_t cols) {
  Dense w{rows, cols, random.normals(rows * cols)};
  for (float& v : w.weights)
    if (random.share() < .3) v = 0.f;  // so that some groups have fewer than two
  return thinned(w, 2, 4);
}

template <typename Type, typename Tile>
void check_linear(Random& random, int64_t rows, int64_t cols, int64_t tokens) {
  std::snprintf(running, sizeof running, "nm tile %dx%d of %zu bytes, linear %dx%d, %d tokens",
                Tile::kRows, Tile::kTokens, sizeof(Type), static_cast<int>(rows),
                static_cast<int>(cols), static_cast<int>(tokens));
  const Dense w = two_of_four(random, rows, cols);
  check_linear_layer(random, w, tokens, [](const Dense& dense, int count, const auto& read) {
    return layer<Type, Tile>(dense, count, 1, read);
  });
}

template <typename Tile>
void check_conv2d(Random& random, const Conv2dShape& s, bool taps_first) {
  std::snprintf(running, sizeof running, "nm tile %dx%d, conv2d, taps first %d", Tile::kRows,
                Tile::kTokens, taps_first);
  check_conv2d_layer(
      random, s, taps_first,
      [&](int64_t rows, int64_t cols) { return two_of_four(random, rows, cols); },
      [&](const Dense& w, int pixels, const auto& read) {
        return layer<Half, Tile>(w, pixels, static_cast<int>(s.groups), read);
      });
}

template <typename Tile>
void check_tile(Random& random) {
  check_linear<Half, Tile>(random, Tile::kRows, 128, Tile::kTokens);
  check_linear<Half, Tile>(random, Tile::kRows + 3, 199, Tile::kTokens + 1);
  check_linear<Half, Tile>(random, 1, 1, 1);
  check_linear<float, Tile>(random, 21, 75, 9);
  const Conv2dShape shapes[] = {
      {2, 24, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, Tile::kRows + 3},
      {1, 12, 9, 6, 2, 3, 2, 1, 0, 2, 1, 2, 2, 38},
  };
  for (const Conv2dShape& s : shapes)
    for (const bool taps_first : {false, true}) check_conv2d<Tile>(random, s, taps_first);
}

}  // namespace

void check_nm_tiles(Random& random) {
  check_tile<Narrow>(random);
  check_tile<Small>(random);
  check_tile<Medium>(random);
  check_tile<Large>(random);
}
