// A second packer of every layout, written from the pictures in csrc/formats/*.h alone and
// naive on purpose. Kernels must agree with it as well as with the Python one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "formats/bitmask.h"
#include "formats/csr.h"

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
