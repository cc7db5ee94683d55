// The work of one csr weight cut into tasks: tiles of lanes (tokens, pixels) times chunks of rows.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "formats/csr.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/table.h"

namespace sparseprune {

constexpr int64_t kAccFloats = 64 * 1024;  // a task's accumulators stay in L2
constexpr int64_t kPieceRows = 128;        // rows whose sums are stored while still in L1
constexpr int64_t kManyTiles = 4;          // per thread; with fewer, rows are cut as well

// What the loops below need to know of a layout: rows come in units, columns in blocks.
inline int64_t unit(const CsrRows&) { return 1; }
inline int64_t unit(const CsrGroups& w) { return w.unit(); }
inline int64_t unit(const CsrSorted&) { return CsrSorted::kRows; }
inline int64_t block_cols(const CsrRows& w) { return w.cols; }
inline int64_t block_cols(const CsrGroups& w) { return w.block; }
inline int64_t block_cols(const CsrSorted& w) { return w.block; }
template <typename W>
int64_t units(const W& w) {
  return (w.rows + unit(w) - 1) / unit(w);
}

// Nonzeros in the rows before unit u.
inline int64_t nonzeros_before(const CsrRows& w, int64_t u) { return w.row_start[u]; }
inline int64_t nonzeros_before(const CsrGroups& w, int64_t u) {
  int64_t sum = 0;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* cell = w.starts + 2 * b * w.groups();
    // starts ends with the totals, so the one past the last group is a cell too
    sum += cell[2 * u * (w.unit() / w.kRows)] - cell[0];
  }
  return sum;
}
inline int64_t nonzeros_before(const CsrSorted& w, int64_t u) {
  int64_t sum = 0;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* cell = w.starts + 2 * b * w.segments();
    sum += cell[2 * u] - cell[0];
  }
  return sum;
}

inline void multiply(const CsrRows& w, int64_t, CsrPanel panel, int vectors, float* acc,
                     int64_t begin, int64_t end, const CsrEnds& ends) {
  csr_kernels().rows(w, panel.data, vectors, acc, begin, end, ends);
}
inline void multiply(const CsrGroups& w, int64_t block, CsrPanel panel, int vectors, float* acc,
                     int64_t begin, int64_t end, const CsrEnds& ends) {
  const int64_t each = w.unit() / w.kRows;
  csr_kernels().groups(w, block, panel.data, vectors, acc, begin * each, end * each, ends);
}
inline void multiply(const CsrSorted& w, int64_t block, CsrPanel panel, int vectors, float* acc,
                     int64_t begin, int64_t end, const CsrEnds& ends) {
  csr_kernels().sorted(w, block, panel, vectors, acc, begin, end, ends);
}

// Units [begin, end) cut into `parts` with about equal nonzeros; appends the ends to `bounds`.
template <typename W>
void cut_evenly(const W& w, int64_t begin, int64_t end, int64_t parts,
                std::vector<int64_t>& bounds) {
  const int64_t first = nonzeros_before(w, begin);
  const int64_t total = nonzeros_before(w, end) - first;
  for (int64_t p = 1; p <= parts; ++p) {
    const int64_t wanted = first + total * p / parts;
    int64_t low = bounds.back(), high = end;
    while (low < high) {  // first unit with at least `wanted` nonzeros before it
      const int64_t middle = (low + high) / 2;
      if (nonzeros_before(w, middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    bounds.push_back(p == parts ? end : low);
  }
}

// What is left of a weight without columns.
inline void fill(const CsrEnds& ends, int64_t lanes, float* acc) {
  for (int64_t r = 0; r < ends.rows; ++r)
    std::fill_n(acc + r * lanes, lanes, ends.bias ? ends.bias[r] : 0.f);
}

struct Tiling {
  int64_t width, vectors, tiles;  // floats in a vector; vectors of lanes, cut into tiles
  int64_t groups;                 // of the convolution
  std::vector<int64_t> chunks;    // bounds in units of rows

  int64_t n_chunks() const { return static_cast<int64_t>(chunks.size()) - 1; }
  int64_t tasks() const { return tiles * n_chunks(); }
  int64_t first(int64_t tile) const { return tile * vectors / tiles; }  // vector
};

// `others` independent streams of the same lanes (images) fill threads too.
template <typename W>
Tiling make_tiling(const W& w, int64_t conv_groups, int64_t lanes, int64_t others,
                   int64_t threads) {
  const PanelKernels& k = panel_kernels();
  Tiling t{k.width, (lanes + k.width - 1) / k.width, 0, conv_groups, {0}};
  t.tiles = (t.vectors + k.max_vectors - 1) / k.max_vectors;
  // A vector more in some tiles, where that takes one tile less.
  const int64_t fewer = std::max<int64_t>(t.vectors / k.max_vectors, 1);
  if ((threads == 1 || fewer >= 2 * threads) && t.vectors <= fewer * csr_kernels().max_vectors)
    t.tiles = fewer;
  const int64_t even = (t.tiles + threads - 1) / threads * threads;
  if (t.tiles > threads && others == 1 && even <= t.vectors) t.tiles = even;
  const int64_t all = t.tiles * others, per_group = units(w) / conv_groups;
  const int64_t split = all >= kManyTiles * threads ? 1 : threads / std::gcd(all, threads);
  int64_t parts =
      std::max(split / conv_groups,
               (per_group * unit(w) * k.max_vectors * k.width + kAccFloats - 1) / kAccFloats);
  parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(per_group, 1));
  for (int64_t g = 0; g < conv_groups; ++g)
    cut_evenly(w, g * per_group, (g + 1) * per_group, parts, t.chunks);
  return t;
}

// Task i of a tiling. `io` knows where activations come from and where sums go:
//   panel(group, begin, end)            activations of columns [begin, end); apart for csr/sorted
//                                       alone
//   sums(row, rows)                     accumulators [rows, lanes], aligned
//   out(row)                            where the kernel puts finished rows itself, if it can
//   store(row, rows, sums)              takes finished rows; sums are null if they are out already
template <typename W, typename Io>
void run_tile(const W& w, const float* bias, const Tiling& tiling, int64_t i, Io& io) {
  const int64_t tile = i / tiling.n_chunks(), chunk = i % tiling.n_chunks();
  const int64_t vectors = tiling.first(tile + 1) - tiling.first(tile);
  const int64_t lanes = vectors * tiling.width, group = chunk * tiling.groups / tiling.n_chunks();
  const int64_t begin = tiling.chunks[chunk], end = tiling.chunks[chunk + 1];
  const int64_t row = begin * unit(w), piece = kPieceRows / unit(w);
  if (std::min(end * unit(w), w.rows) <= row) return;
  float* acc = io.sums(row, (end - begin) * unit(w));
  for (int64_t block = 0, col = 0; block == 0 || col < w.cols; ++block, col += block_cols(w)) {
    const int64_t last_col = std::min(col + block_cols(w), w.cols);
    const CsrPanel panel = io.panel(group, col, last_col);
    // A piece of rows at a time, so that its sums are still in L1 when they are stored.
    for (int64_t u = begin; u < end; u += piece) {
      const int64_t stop = std::min(u + piece, end), first_row = u * unit(w);
      const int64_t count = std::min(stop * unit(w), w.rows) - first_row;
      float* sums = acc + (first_row - row) * lanes;
      CsrEnds ends;
      if (last_col == w.cols) ends = io.out(first_row);
      ends.first = col == 0, ends.bias = bias ? bias + first_row : nullptr, ends.rows = count;
      if (w.cols)
        multiply(w, block, panel, static_cast<int>(vectors), sums, u, stop, ends);
      else
        ends.y = nullptr, fill(ends, lanes, sums);
      if (last_col == w.cols) io.store(first_row, count, ends.y ? nullptr : sums);
    }
  }
}

// Memory of a task, kept by its thread.
inline float* panel_scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.take(floats);
}
inline float* sums_scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.take(floats);
}

}  // namespace sparseprune
