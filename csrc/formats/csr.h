// Unstructured sparse weight W [rows, cols] in one of three layouts: float32, "rows" in 16-bit
// types too. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

// Layout "rows": compressed sparse rows with 16-bit columns.
//
//   W = [a 0 b 0]     values  [a b | c]
//       [0 0 0 c]     columns [0 2 | 3]     row_start [0 2 3]
template <typename T>
struct CsrRowsOf {
  const T* values;           // [nonzeros]
  const uint16_t* columns;   // [nonzeros], ascending within a row
  const int32_t* row_start;  // [rows + 1]
  int64_t rows, cols;        // cols <= 65536
};
using CsrRows = CsrRowsOf<float>;

// Layout "groups": four rows share what they load. The columns of one block of `block` columns
// are sorted by pattern: bit r of a pattern says that row r of the group has a nonzero there. A
// kernel then runs one branch-free loop per pattern 1..15, with its accumulators fixed.
//
//   group  [a . b .]     pattern 1  (row 0 only)     columns [0]    values [a]
//   of     [. c . .]     pattern 6  (rows 1 and 2)   columns [1]    values [c d]
//   four   [. d . e]     pattern 13 (rows 0, 2, 3)   columns [2 ..
//
// Which rows a group has: four that follow each other or, where groups are numbered, any four of a
// segment, chosen anew in every block so that they share many columns. Their numbers within the
// segment stand before the counts, and rows are whole segments.
//
// Order of everything: block, group, pattern, column, row.
struct CsrGroups {
  static constexpr int kRows = 4;
  static constexpr int kPatterns = 15;
  static constexpr int kNumbered = kRows + kPatterns;
  static constexpr int kSegment = 64;    // rows
  static constexpr int kMaxBlock = 255;  // a count of columns fits in a byte

  const float* values;       // [nonzeros]
  const uint8_t* columns;    // [distinct (group, column) pairs], column within its block
  const uint8_t* counts;     // [blocks, groups, cell], columns of each pattern
  const int32_t* starts;     // [blocks * groups + 1, 2], where a cell's values and columns begin
  int64_t rows, cols;        // dense shape
  int64_t block;             // columns per block, <= kMaxBlock
  int64_t cell = kPatterns;  // or kNumbered

  constexpr bool numbered() const { return cell == kNumbered; }
  constexpr int64_t unit() const { return numbered() ? kSegment : kRows; }  // rows that go together
  constexpr int64_t groups() const { return (rows + kRows - 1) / kRows; }
  constexpr int64_t blocks() const { return (cols + block - 1) / block; }
};

// Layout "sorted": within a block of columns, the rows of a segment go in pairs. A column that both
// rows have is loaded once for the two, but for up to three that long rows keep for themselves
// where their others are a multiple of four then; rows are paired that have as many and share many.
// Pairs lie in order of the columns that they share and of those that each has besides, so that
// loops end where they did for the pair before and the branch predictor knows it. Of two rows, the
// first has fewer columns besides; a row without a partner is the second of the last pair of its
// segment.
//
//   pair [a . b c]     rows 0 and 1, 1 shared, 1 and 2 more
//        [d e . .]  -> counts  (1 0) (1 1 2)   columns [0 | 1 | 2 3]   values [d a | e | b c]
struct CsrSorted {
  static constexpr int kRows = 128;      // rows of a segment
  static constexpr int kMaxBlock = 255;  // columns and counts fit in a byte
  static constexpr int kPair = 5;        // counts of a pair

  const float* values;  // [nonzeros], shared columns with a value of each row
  const uint8_t*
      columns;            // pair by pair: shared, of the first row, of the second; within the block
  const uint8_t* counts;  // [blocks, pairs, 5]: two rows of the segment, shared, first's, second's
  const int32_t* starts;  // [blocks * segments + 1, 2], where values and columns begin
  int64_t rows, cols;     // dense shape
  int64_t block;          // columns per block, <= kMaxBlock

  constexpr int64_t segments() const { return (rows + kRows - 1) / kRows; }
  constexpr int64_t pairs() const { return (rows + 1) / 2; }
  constexpr int64_t blocks() const { return (cols + block - 1) / block; }
};

}  // namespace sparseprune
