// Unstructured sparse weight W [rows, cols]: sliced ELLPACK with windows. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

// 16 rows form a slice, a lane each. A step of a slice holds at most one nonzero of every row, all
// of them within a window of 32 columns that begins at a multiple of 16; a row without one there
// has a hole. A kernel then picks 16 inputs out of two vectors in one instruction, where the other
// layouts load every input on its own. Steps go from left to right, and so do a row's columns.
//
//   row 0   [a . e]     values  [a b g 0 ..]  [e d 0 0 ..]      one line of 16 a step
//   row 1   [. b d]     columns [0 1 0 h ..]  [2 2 h h ..]      of the window; kKept set, h: hole
//   row 2   [g . .]     windows [0] [0]                         first column / 16
//                       starts  [0 2]                           of a slice's steps
//
// Kreutzer et al., SIAM J. Sci. Comput. 36 (2014): sliced ELLPACK; windows are ours.
struct Sell {
  static constexpr int kRows = 16;        // of a slice
  static constexpr int kBegin = 16;       // windows begin at multiples of it
  static constexpr int kWindow = 32;      // columns
  static constexpr uint8_t kKept = 0x80;  // in a column: there is a nonzero

  const float* values;      // [steps, 16]
  const uint8_t* columns;   // [steps, 16]; holes are 0
  const uint16_t* windows;  // [steps]
  const int32_t* starts;    // [units + 1], steps
  int64_t rows, cols;       // dense shape; rows past the last have holes alone

  constexpr int64_t units() const { return (rows + kRows - 1) / kRows; }
  // Floats of a token that windows may reach.
  constexpr int64_t reach() const { return (cols + kBegin - 1) / kBegin * kBegin + kBegin; }
};

}  // namespace sparseprune
