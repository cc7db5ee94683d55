// The CUDA block kernels on the CPU: whole layers through a model of a thread block that knows
// shared memory, ldmatrix and mma only by kernels/cuda/mma_fragments.h and block_index.h.
#include <map>

#include "cuda_layers.h"
#include "formats/block.h"
#include "kernels/cuda/block_index.h"
#include "through_ldmatrix.h"

namespace {

using namespace sparseprune;
using namespace sparseprune::block;

struct Half {
  uint16_t bits;
};

using Tensor = std::vector<float>;
using Sums = std::map<std::pair<int, int>, double>;  // token and row of the tile

// Both tiles of one stage; elements count as `Type` in bytes. Every chunk is written exactly once.
template <typename Type, typename Tile>
class Stage {
 public:
  // x(t, column) is what token t of the tile reads; live: whether k is inside of the blocks.
  template <typename X>
  Stage(const Packed& w, const Strip& strip, int stage, const X& x)
      : elements_(Tile::kStageBytes / sizeof(Type), 0.f), written_(elements_.size(), 0) {
    const int begin = w.starts[strip.block_row];
    const int depth = (w.starts[strip.block_row + 1] - begin) * Tile::kSide;
    for (int thread = 0; thread < kThreads; ++thread) {
      const int chunk = copy_chunk(thread), k = stage * kStage<Type> + chunk * kChunk<Type>;
      const bool live = k < depth;
      const BlockColumn at = block_column(k, Tile::kSide);
      const int column = live ? w.block_columns[begin + at.block] * Tile::kSide + at.col : 0;
      for (int t = copy_row(thread); t < Tile::kTokens; t += kCopyRows)
        for (int i = 0; i < kChunk<Type>; ++i) put(t, chunk, i, live ? x(t, column + i) : 0.f);
      for (int r = copy_row(thread); r < Tile::kRows; r += kCopyRows)
        for (int i = 0; i < kChunk<Type>; ++i) {
          const int64_t from =
              (int64_t{begin + at.block} * Tile::kSide + strip.row + r) * Tile::kSide + at.col + i;
          put(Tile::kTokens + r, chunk, i, live ? w.values.at(static_cast<size_t>(from)) : 0.f);
        }
    }
    bool once = true;
    for (const int count : written_) once = once && count == 1;
    expect(once, "every place of a stage is written once");
  }

  float at(int row, int element) const {
    return elements_.at(place(row, element / kChunk<Type>, element % kChunk<Type>));
  }

 private:
  // Rows of w follow those of x; the swizzle counts from the start of its own tile.
  static size_t place(int row, int chunk, int i) {
    const int base = row < Tile::kTokens ? 0 : Tile::kTokens * kRowBytes;
    const int own = row < Tile::kTokens ? row : row - Tile::kTokens;
    return static_cast<size_t>((base + chunk_byte(own, chunk)) / static_cast<int>(sizeof(Type)) +
                               i);
  }
  void put(int row, int chunk, int i, float v) {
    elements_.at(place(row, chunk, i)) = v;
    ++written_.at(place(row, chunk, i));
  }

  Tensor elements_;
  std::vector<int> written_;
};

// One stage as the tensor cores see it: fragments through ldmatrix, products by mma.
template <typename Tile>
void multiply(const Stage<Half, Tile>& stage, Sums& sums) {
  constexpr int kSteps = kStage<Half> / mma::kK;
  for (int warp = 0; warp < kWarps; ++warp) {
    const Share share = share_of<Tile>(warp);
    for (int step = 0; step < kSteps / Tile::kWarpsK; ++step)
      for (int m = 0; m < Tile::kWarpTokens; m += mma::kM)
        for (int n = 0; n < Tile::kWarpRows; n += mma::kN) {
          const int k = share.k * (kSteps / Tile::kWarpsK) + step;
          float a[mma::kM][mma::kK] = {}, b[mma::kK][mma::kN] = {};
          for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 8; ++i) {
              const mma::Place from = through_ldmatrix(mma::a_address, lane, i / 2, i % 2);
              const mma::Place to = mma::a_place(lane, i);
              a[to.row][to.col] = stage.at(share.token + m + from.row, 16 * k + from.col);
            }
            for (int i = 0; i < 4; ++i) {
              const int j = n / mma::kN % 2 * 2 + i / 2;  // the second of two n tiles: 2 and 3
              const mma::Place from = through_ldmatrix(mma::b_address, lane, j, i % 2);
              const mma::Place to = mma::b_place(lane, i);
              const int pair = n / (2 * mma::kN) * 2 * mma::kN;
              b[to.row][to.col] =
                  stage.at(Tile::kTokens + share.row + pair + from.row, 16 * k + from.col);
            }
          }
          for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < mma::kCRegs; ++i) {
              const mma::Place c = mma::c_place(lane, i);
              double sum = 0;
              for (int kk = 0; kk < mma::kK; ++kk) sum += double{a[c.row][kk]} * b[kk][c.col];
              sums[{share.token + m + c.row, share.row + n + c.col}] += sum;
            }
        }
  }
}

// The same for float, whose threads share out tokens and rows without fragments.
template <typename Tile>
void multiply(const Stage<float, Tile>& stage, Sums& sums) {
  for (int t = 0; t < Tile::kTokens; ++t)
    for (int r = 0; r < Tile::kRows; ++r)
      for (int k = 0; k < kStage<float>; ++k)
        sums[{t, r}] += double{stage.at(t, k)} * stage.at(Tile::kTokens + r, k);
}

// A whole layer by as many thread blocks as the launcher starts; y [tokens, rows]. x(token, group,
// column) is 0 past the last token or column.
template <typename Type, typename Tile, typename X>
std::vector<double> layer(const Dense& w, int tokens, int rows_per_group, const X& x) {
  const Packed packed = pack_block(w, Tile::kSide, Tile::kSide);
  const int rows = static_cast<int>(w.rows);
  const int tall = (rows + Tile::kSide - 1) / Tile::kSide;
  const int tiles = (tokens + Tile::kTokens - 1) / Tile::kTokens;
  std::vector<double> y(static_cast<size_t>(tokens) * rows, NAN);
  for (int thread_block = 0; thread_block < tall * Tile::kStrips * tiles; ++thread_block) {
    const Strip strip = strip_of<Tile>(thread_block, rows);
    const int blocks = packed.starts[strip.block_row + 1] - packed.starts[strip.block_row];
    const int stages = (blocks * Tile::kSide + kStage<Type> - 1) / kStage<Type>;
    const int group = strip.block_row * Tile::kSide / rows_per_group;
    Sums sums;
    for (int s = 0; s < stages; ++s)
      multiply(Stage<Type, Tile>(packed, strip, s,
                                 [&](int t, int c) { return x(strip.token + t, group, c); }),
               sums);
    for (int t = 0; t < Tile::kTokens; ++t)
      for (int r = 0; r < Tile::kRows; ++r) {
        const int token = strip.token + t, row = strip.block_row * Tile::kSide + strip.row + r;
        if (token >= tokens || row >= rows) continue;
        double& out = y.at(static_cast<size_t>(token) * rows + row);
        expect(std::isnan(out), "every output belongs to one thread block");
        out = sums[{t, r}];
      }
  }
  return y;
}

// Most blocks empty, so that rows of blocks have different numbers of them, and some none.
Dense blocky(Random& random, int64_t rows, int64_t cols, int side) {
  Dense w{rows, cols, random.normals(rows * cols)};
  const int64_t wide = (cols + side - 1) / side;
  std::vector<bool> kept;
  for (int64_t i = 0; i < (rows + side - 1) / side * wide; ++i) kept.push_back(random.share() < .5);
  for (int64_t i = 0; i < rows * cols; ++i)
    if (!kept[static_cast<size_t>(i / cols / side * wide + i % cols / side)]) w.weights[i] = 0.f;
  return w;
}

template <typename Type, typename Tile>
void check_linear(Random& random, int64_t rows, int64_t cols, int64_t tokens) {
  std::snprintf(running, sizeof running, "tile %dx%dx%d of %zu bytes, linear %dx%d, %d tokens",
                Tile::kSide, Tile::kRows, Tile::kTokens, sizeof(Type), static_cast<int>(rows),
                static_cast<int>(cols), static_cast<int>(tokens));
  const Dense w = blocky(random, rows, cols, Tile::kSide);
  check_linear_layer(random, w, tokens, [&](const Dense& dense, int count, const auto& read) {
    return layer<Type, Tile>(dense, count, static_cast<int>(rows), read);
  });
}

template <typename Tile>
void check_conv2d(Random& random, const Conv2dShape& s, bool taps_first) {
  std::snprintf(running, sizeof running, "tile %dx%dx%d, conv2d, taps first %d", Tile::kSide,
                Tile::kRows, Tile::kTokens, taps_first);
  check_conv2d_layer(
      random, s, taps_first,
      [&](int64_t rows, int64_t cols) { return blocky(random, rows, cols, Tile::kSide); },
      [&](const Dense& w, int pixels, const auto& read) {
        return layer<Half, Tile>(w, pixels, static_cast<int>(s.rows / s.groups), read);
      });
}

template <typename Tile>
void check_tile(Random& random) {
  check_linear<Half, Tile>(random, 2 * Tile::kSide, 3 * Tile::kSide, Tile::kTokens);
  check_linear<Half, Tile>(random, 2 * Tile::kSide + 3, 5 * Tile::kSide + 7, Tile::kTokens + 1);
  check_linear<Half, Tile>(random, 1, 1, 1);
  check_linear<float, Tile>(random, Tile::kSide + 5, 5 * Tile::kSide - 1, 9);
  const int64_t rows = Tile::kSide;
  const Conv2dShape shapes[] = {
      {2, 24, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, rows + 3},
      {1, 48, 9, 6, 2, 3, 2, 1, 0, 2, 1, 2, 2, 2 * rows},
  };
  for (const Conv2dShape& s : shapes)
    for (const bool taps_first : {false, true}) check_conv2d<Tile>(random, s, taps_first);
}

template <int side>
void check_tiles(Random& random) {
  check_tile<typename Tiles<side>::Many>(random);
  check_tile<typename Tiles<side>::Few>(random);
}

}  // namespace

void check_block_tiles(Random& random) {
  check_tiles<16>(random);
  check_tiles<32>(random);
  check_tiles<64>(random);
}
