// The CUDA csr kernels for the layout "rows" on the CPU: whole layers through a model of their
// thread blocks that knows vectors, slabs and tiles only by kernels/cuda/csr_index.h.
#include "check.h"
#include "kernels/cuda/csr_index.h"

namespace {

using namespace sparseprune;
using namespace sparseprune::csr;

// Whole numbers, so that sums are exact in any order.
struct Layer {
  Dense w;
  Packed p;
  int64_t tokens;
  std::vector<float> x;

  Layer(Random& random, int64_t rows, int64_t cols, int64_t tokens, double density)
      : w{rows, cols, {}}, tokens(tokens) {
    for (int64_t i = 0; i < rows * cols; ++i)
      w.weights.push_back(random.share() < density ? static_cast<float>(random.integer(1, 99))
                                                   : 0.f);
    for (int64_t i = 0; i < tokens * cols; ++i)
      x.push_back(static_cast<float>(random.integer(-9, 9)));
    p = pack_rows(w);
  }

  void compare(const std::vector<double>& y) const {
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < w.rows; ++r) {
        double sum = 0;
        for (int64_t c = 0; c < w.cols; ++c) sum += double{w.at(r, c)} * x[t * w.cols + c];
        expect(y[t * w.rows + r] == sum, "y[" + std::to_string(t) + ", " + std::to_string(r) + "]");
      }
  }
};

// A warp per row: every lane's vectors, those that end behind the buffers element by element.
template <typename T>
std::vector<double> few(const Layer& layer) {
  std::vector<double> y(static_cast<size_t>(layer.tokens * layer.w.rows), 0.);
  const auto stored = static_cast<uint32_t>(layer.p.values.size());
  for (int64_t row = 0; row < layer.w.rows; ++row) {
    const uint32_t begin = layer.p.starts[row], end = layer.p.starts[row + 1];
    for (uint32_t lane = 0; lane < kLanes; ++lane)
      for (uint32_t v = first_vector<T>(begin) + lane; v < end_vector<T>(end); v += kLanes)
        for (uint32_t i = 0; i < kVector<T>; ++i) {
          expect(!whole<T>(v, stored) || v * kVector<T> + i < stored, "whole vectors lie inside");
          if (!inside<T>(v, i, begin, end)) continue;
          const size_t n = v * kVector<T> + i;
          for (int64_t t = 0; t < layer.tokens; ++t)
            y[t * layer.w.rows + row] += double{layer.p.values.at(n)} *
                                         layer.x.at(t * layer.w.cols + layer.p.wide_columns.at(n));
        }
  }
  return y;
}

// The slab of a tile, each place written once; what is not x is 0.
template <typename Tile>
std::vector<float> load_slab(const Layer& layer, const Corner& corner, int64_t first) {
  std::vector<float> slab(Tile::kSlabFloats, 0.f);
  std::vector<int> written(slab.size(), 0);
  for (int thread = 0; thread < kManyThreads; ++thread)
    for (int p = thread; p < Tile::kPieces; p += kManyThreads) {
      const Piece piece = piece_of<Tile>(p);
      for (int i = 0; i < kPiece; ++i) {
        const int64_t token = corner.token + piece.token, column = first + piece.column + i;
        const size_t place = place_of<Tile>(piece.column + i, piece.token);
        ++written.at(place);
        if (token < layer.tokens && column < layer.w.cols)
          slab.at(place) = layer.x.at(token * layer.w.cols + column);
      }
    }
  for (const int count : written) expect(count == 1, "every place of a slab is written once");
  return slab;
}

template <int kEach>
std::vector<double> many(const Layer& layer) {
  using Tile = csr::Tile<kEach>;
  const int64_t rows = layer.w.rows, tall = (rows + kTileRows - 1) / kTileRows;
  const int64_t wide = (layer.tokens + Tile::kTokens - 1) / Tile::kTokens;
  std::vector<double> y(static_cast<size_t>(layer.tokens * rows), NAN);
  for (int64_t thread_block = 0; thread_block < tall * wide; ++thread_block) {
    const Corner corner = corner_of<Tile>(thread_block, rows);
    std::vector<int32_t> cursors(layer.p.starts.begin(), layer.p.starts.end());
    std::vector<double> sums(kTileRows * Tile::kTokens, 0.);
    for (int64_t first = 0; first < layer.w.cols; first += kSlab) {
      const std::vector<float> slab = load_slab<Tile>(layer, corner, first);
      for (int64_t r = corner.row; r < std::min(rows, corner.row + kTileRows); ++r)
        for (; cursors[r] < layer.p.starts[r + 1]; ++cursors[r]) {
          const int column = layer.p.wide_columns.at(cursors[r]);
          if (column >= first + kSlab) break;
          for (int lane = 0; lane < kLanes; ++lane)
            for (int t = 0; t < kEach; ++t)
              sums.at((r - corner.row) * Tile::kTokens + lane * kEach + t) +=
                  double{layer.p.values.at(cursors[r])} *
                  slab.at(place_of<Tile>(column - static_cast<int>(first), lane * kEach) + t);
        }
    }
    for (int64_t r = corner.row; r < std::min(rows, corner.row + kTileRows); ++r)
      for (int t = 0; t < Tile::kTokens && corner.token + t < layer.tokens; ++t) {
        double& out = y.at((corner.token + t) * rows + r);
        expect(std::isnan(out), "every output belongs to one thread block");
        out = sums.at((r - corner.row) * Tile::kTokens + t);
      }
  }
  return y;
}

}  // namespace

void check_csr_warps(Random& random) {
  const struct {
    int64_t rows, cols, tokens;
    double density;
  } sizes[] = {{1, 1, 1, 1.},      {37, 200, 3, .3}, {5, 700, 2, 1.},   {130, 64, 40, .1},
               {65, 129, 129, .5}, {3, 40, 70, 0.},  {64, 256, 33, .02}};
  for (const auto& size : sizes) {
    std::snprintf(running, sizeof running, "csr warps, %dx%d, %d tokens, %.2f",
                  static_cast<int>(size.rows), static_cast<int>(size.cols),
                  static_cast<int>(size.tokens), size.density);
    const Layer layer(random, size.rows, size.cols, size.tokens, size.density);
    layer.compare(few<float>(layer));
    layer.compare(few<uint16_t>(layer));
    layer.compare(many<1>(layer));
    layer.compare(many<2>(layer));
    layer.compare(many<4>(layer));
  }
}
