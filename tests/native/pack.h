// A second packer of every layout, written from the pictures in csrc/formats/*.h alone and
// naive on purpose. Kernels must agree with it as well as with the Python one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "formats/bitmask.h"
#include "formats/csr.h"
#include "formats/nm.h"

struct Dense {
  int64_t rows, cols;
  std::vector<float> weights;  // [rows, cols]
  float at(int64_t r, int64_t c) const { return r < rows ? weights[r * cols + c] : 0.f; }
};

struct Packed {
  std::vector<float> values;
  std::vector<uint16_t> wide_columns;  // layout "rows"
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

inline Packed pack_groups(const Dense& w, int64_t block) {
  Packed p;
  p.starts = {0, 0};
  for (int64_t begin = 0; begin < w.cols; begin += block)
    for (int64_t row = 0; row < w.rows; row += sparseprune::CsrGroups::kRows) {
      for (int pattern = 1; pattern <= sparseprune::CsrGroups::kPatterns; ++pattern) {
        uint8_t count = 0;
        for (int64_t c = begin; c < std::min(begin + block, w.cols); ++c) {
          int bits = 0;
          for (int r = 0; r < sparseprune::CsrGroups::kRows; ++r)
            bits |= (w.at(row + r, c) != 0.f) << r;
          if (bits != pattern) continue;
          ++count;
          p.columns.push_back(static_cast<uint8_t>(c - begin));
          for (int r = 0; r < sparseprune::CsrGroups::kRows; ++r)
            if (bits >> r & 1) p.values.push_back(w.at(row + r, c));
        }
        p.counts.push_back(count);
      }
      p.starts.push_back(size_of(p.values));
      p.starts.push_back(size_of(p.columns));
    }
  return p;
}

inline Packed pack_sorted(const Dense& w, int64_t block) {
  Packed p;
  p.starts = {0};
  for (int64_t begin = 0; begin < w.cols; begin += block)
    for (int64_t row = 0; row < w.rows; row += sparseprune::CsrSorted::kRows) {
      const int64_t rows = std::min(w.rows - row, sparseprune::CsrSorted::kRows + int64_t{0});
      for (int64_t nonzeros = 0; nonzeros <= block; ++nonzeros)
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<uint8_t> columns;
          for (int64_t c = begin; c < std::min(begin + block, w.cols); ++c)
            if (w.at(row + r, c) != 0.f) columns.push_back(static_cast<uint8_t>(c - begin));
          if (size_of(columns) != nonzeros) continue;
          p.counts.push_back(static_cast<uint8_t>(r));
          p.counts.push_back(static_cast<uint8_t>(nonzeros));
          for (uint8_t c : columns) p.values.push_back(w.at(row + r, begin + c));
          p.columns.insert(p.columns.end(), columns.begin(), columns.end());
        }
      p.starts.push_back(size_of(p.values));
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
