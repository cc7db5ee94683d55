// A second packer of every layout, written from the pictures in csrc/formats/*.h alone and
// naive on purpose. Kernels must agree with it as well as with the Python one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "formats/bitmask.h"
#include "formats/csr.h"
#include "formats/nm.h"
#include "formats/sell.h"

struct Dense {
  int64_t rows, cols;
  std::vector<float> weights;  // [rows, cols]
  float at(int64_t r, int64_t c) const { return r < rows ? weights[r * cols + c] : 0.f; }
};

struct Packed {
  std::vector<float> values;
  std::vector<uint16_t> wide_columns;  // layout "rows"
  std::vector<uint16_t> windows;       // sell
  std::vector<int32_t> order;
  std::vector<uint8_t> columns, counts, masks;
  std::vector<int32_t> block_columns;
  std::vector<int32_t> starts;
  std::vector<uint8_t> places;  // n:m
};

inline int32_t size_of(const auto& v) { return static_cast<int32_t>(v.size()); }

inline Packed pack_rows(const Dense& w) {
  Packed p;
  p.starts.push_back(0);
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t c = 0; c < w.cols; ++c)
      if (w.at(r, c) != 0.f) {
        p.values.push_back(w.at(r, c));
        p.wide_columns.push_back(static_cast<uint16_t>(c));
      }
    p.starts.push_back(size_of(p.values));
  }
  return p;
}

// A group in a block of columns.
inline void pack_group(const Dense& w, const std::vector<int64_t>& rows, int64_t begin, int64_t end,
                       Packed& p) {
  for (int pattern = 1; pattern <= sparseprune::CsrGroups::kPatterns; ++pattern) {
    uint8_t count = 0;
    for (int64_t c = begin; c < end; ++c) {
      int bits = 0;
      for (size_t r = 0; r < rows.size(); ++r) bits |= (w.at(rows[r], c) != 0.f) << r;
      if (bits != pattern) continue;
      ++count;
      p.columns.push_back(static_cast<uint8_t>(c - begin));
      for (size_t r = 0; r < rows.size(); ++r)
        if (bits >> r & 1) p.values.push_back(w.at(rows[r], c));
    }
    p.counts.push_back(count);
  }
  p.starts.push_back(size_of(p.values));
  p.starts.push_back(size_of(p.columns));
}

inline Packed pack_groups(const Dense& w, int64_t block) {
  Packed p;
  p.starts = {0, 0};
  for (int64_t begin = 0; begin < w.cols; begin += block)
    for (int64_t row = 0; row < w.rows; row += sparseprune::CsrGroups::kRows)
      pack_group(w, {row, row + 1, row + 2, row + 3}, begin, std::min(begin + block, w.cols), p);
  return p;
}

// Rows of a segment by their number of columns in the block: any groups are right.
inline Packed pack_numbered(const Dense& w, int64_t block) {
  Packed p;
  p.starts = {0, 0};
  for (int64_t begin = 0; begin < w.cols; begin += block)
    for (int64_t row = 0; row < w.rows; row += sparseprune::CsrGroups::kSegment) {
      const int64_t end = std::min(begin + block, w.cols);
      std::vector<std::pair<int64_t, int64_t>> list;  // columns, row
      for (int64_t r = row; r < row + sparseprune::CsrGroups::kSegment; ++r) {
        list.emplace_back(0, r);
        for (int64_t c = begin; c < end; ++c) list.back().first += w.at(r, c) != 0.f;
      }
      std::sort(list.begin(), list.end());
      for (size_t i = 0; i < list.size(); i += sparseprune::CsrGroups::kRows) {
        std::vector<int64_t> rows;
        for (int r = 0; r < sparseprune::CsrGroups::kRows; ++r) {
          rows.push_back(list[i + r].second);
          p.counts.push_back(static_cast<uint8_t>(rows.back() - row));
        }
        pack_group(w, rows, begin, end, p);
      }
    }
  return p;
}

// Rows of a segment by their columns in the block, two neighbours a pair: any pairs are right.
inline Packed pack_sorted(const Dense& w, int64_t block) {
  using Columns = std::vector<uint8_t>;
  Packed p;
  p.starts = {0, 0};
  for (int64_t begin = 0; begin < w.cols; begin += block)
    for (int64_t row = 0; row < w.rows; row += sparseprune::CsrSorted::kRows) {
      const int64_t rows = std::min(w.rows - row, sparseprune::CsrSorted::kRows + int64_t{0});
      std::vector<std::pair<Columns, int64_t>> list;
      for (int64_t r = 0; r < rows; ++r) {
        Columns columns;
        for (int64_t c = begin; c < std::min(begin + block, w.cols); ++c)
          if (w.at(row + r, c) != 0.f) columns.push_back(static_cast<uint8_t>(c - begin));
        list.emplace_back(columns, r);
      }
      std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) {
        return a.first.size() > b.first.size();
      });
      if (rows % 2) list.emplace_back(Columns{}, list.back().second);  // its own first
      for (size_t i = 0; i < list.size(); i += 2) {
        const auto& [more, second] = list[i];
        const auto& [less, first] = list[i + 1];
        Columns both, only_less, only_more;
        std::set_intersection(less.begin(), less.end(), more.begin(), more.end(),
                              std::back_inserter(both));
        std::set_difference(less.begin(), less.end(), both.begin(), both.end(),
                            std::back_inserter(only_less));
        std::set_difference(more.begin(), more.end(), both.begin(), both.end(),
                            std::back_inserter(only_more));
        for (const int64_t count : {first, second, int64_t{size_of(both)},
                                    int64_t{size_of(only_less)}, int64_t{size_of(only_more)}})
          p.counts.push_back(static_cast<uint8_t>(count));
        for (uint8_t c : both)
          for (int64_t r : {first, second}) p.values.push_back(w.at(row + r, begin + c));
        for (uint8_t c : only_less) p.values.push_back(w.at(row + first, begin + c));
        for (uint8_t c : only_more) p.values.push_back(w.at(row + second, begin + c));
        for (const Columns& part : {both, only_less, only_more})
          p.columns.insert(p.columns.end(), part.begin(), part.end());
      }
      p.starts.push_back(size_of(p.values));
      p.starts.push_back(size_of(p.columns));
    }
  return p;
}

inline Packed pack_bitmask(const Dense& w) {
  Packed p;
  p.starts = {0};
  for (int64_t row = 0; row < w.rows; row += sparseprune::Bitmask::kRows) {
    for (int64_t c = 0; c < w.cols; ++c)
      for (int byte = 0; byte < sparseprune::Bitmask::kMaskBytes; ++byte) {
        int bits = 0;
        for (int i = 0; i < 8; ++i)
          if (const float value = w.at(row + 8 * byte + i, c); value != 0.f) {
            bits |= 1 << i;
            p.values.push_back(value);
          }
        p.masks.push_back(static_cast<uint8_t>(bits));
      }
    p.starts.push_back(size_of(p.values));
  }
  return p;
}

// With an order: rows from the last to the first, for any order is right.
inline Packed pack_sell(const Dense& weight, bool ordered) {
  using sparseprune::Sell;
  Packed p;
  p.starts = {0};
  Dense w = weight;
  for (int64_t r = 0; ordered && r < w.rows; ++r) {
    const int64_t from = w.rows - 1 - r;
    p.order.push_back(static_cast<int32_t>(from));
    std::copy_n(weight.weights.begin() + from * w.cols, w.cols, w.weights.begin() + r * w.cols);
  }
  for (int64_t row = 0; row < w.rows; row += Sell::kRows) {
    std::vector<int64_t> next(Sell::kRows, 0);  // column of each row that is not yet stored
    for (;;) {
      int64_t first = w.cols;
      for (int r = 0; r < Sell::kRows; ++r) {
        while (next[r] < w.cols && w.at(row + r, next[r]) == 0.f) ++next[r];
        first = std::min(first, next[r]);
      }
      if (first == w.cols) break;
      const int64_t window = first / Sell::kBegin;
      for (int r = 0; r < Sell::kRows; ++r) {
        const int64_t column = next[r] - window * Sell::kBegin;
        const bool kept = next[r] < w.cols && column < Sell::kWindow;
        p.values.push_back(kept ? w.at(row + r, next[r]++) : 0.f);
        p.columns.push_back(static_cast<uint8_t>(kept ? Sell::kKept | column : 0));
      }
      p.windows.push_back(static_cast<uint16_t>(window));
    }
    p.starts.push_back(size_of(p.windows));
  }
  return p;
}

inline Packed pack_block(const Dense& w, int64_t r, int64_t c) {
  Packed p;
  p.starts = {0};
  for (int64_t row = 0; row < w.rows; row += r) {
    for (int64_t col = 0; col < w.cols; col += c) {
      std::vector<float> block;
      for (int64_t i = row; i < row + r; ++i)
        for (int64_t j = col; j < col + c; ++j) block.push_back(j < w.cols ? w.at(i, j) : 0.f);
      if (std::all_of(block.begin(), block.end(), [](float v) { return v == 0.f; })) continue;
      p.values.insert(p.values.end(), block.begin(), block.end());
      p.block_columns.push_back(static_cast<int32_t>(col / c));
    }
    p.starts.push_back(size_of(p.block_columns));
  }
  return p;
}

// At most n of every m columns of W are nonzero.
inline Packed pack_nm(const Dense& w, int64_t n, int64_t m) {
  Packed p;
  const sparseprune::Nm<float> sizes{nullptr, nullptr, w.rows, w.cols, n, m};
  for (int64_t row = 0; row < w.rows; ++row) {
    std::vector<int> places;
    for (int64_t group = 0; group < sizes.padded_groups(); ++group) {
      const auto at = [&](int64_t i) {
        return group * m + i < w.cols ? w.at(row, group * m + i) : 0.f;
      };
      int64_t free = n;
      for (int64_t i = 0; i < m; ++i) free -= at(i) != 0.f;
      for (int64_t i = 0; i < m; ++i)
        if (at(i) != 0.f || free-- > 0) {
          p.values.push_back(at(i));
          places.push_back(static_cast<int>(i));
        }
    }
    const int bits = m <= 4 ? 2 : 4;
    for (size_t i = 0; i < places.size(); i += 8 / bits) {
      int byte = 0;
      for (int k = 0; k < 8 / bits; ++k) byte |= places[i + k] << k * bits;
      p.places.push_back(static_cast<uint8_t>(byte));
    }
  }
  return p;
}

// W, of every m columns of a row the first n nonzeros kept.
inline Dense thinned(Dense w, int64_t n, int64_t m) {
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t first = 0; first < w.cols; first += m) {
      int64_t kept = 0;
      for (int64_t c = first; c < std::min(first + m, w.cols); ++c)
        if (float& v = w.weights[row * w.cols + c]; v != 0.f && ++kept > n) v = 0.f;
    }
  return w;
}
