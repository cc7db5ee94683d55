// Where values lie: row pitches that fit all that read and write them, and a place in the arena.
#pragma once
#include "program/plan.h"

namespace sparseprune {

// Values whose elements keep their flat distance (a window with stride 1, a sum) share the pitch
// of rows and slices. Collects what each value needs, then resolves all at once.
class Layout {
 public:
  explicit Layout(std::vector<Value>& values) : values_(values) {}

  void same_pitch(int64_t a, int64_t b);
  // Zeros needed after every row and every slice's last row.
  void padding(int64_t value, int64_t columns, int64_t rows);
  // Rows at least this long.
  void row(int64_t value, int64_t floats);

  // Fixes row and slice of every image; `value` may have been appended since construction.
  void resolve();

 private:
  struct Node {
    int64_t parent = -1;
    int64_t columns = 0, rows = 0, row = 0;
  };
  Node& node(int64_t value);
  int64_t root(int64_t value);

  std::vector<Value>& values_;
  std::vector<Node> nodes_;
};

// A value of tokens: tiles of up to `lanes`, or one row per token, each a whole number of vectors.
void lay_tokens(Value& value, int64_t lanes, bool rows_form);

// Flat positions relative to element 0 that are read: from -before up to `end` (exclusive).
void reach(Value& value, int64_t before, int64_t end);

// Planes become whole vectors at addresses that do not all fall into the same cache sets.
void close_planes(Value& value);

// Gives every value a buffer so that those alive at once do not overlap; returns the floats needed.
int64_t place(std::vector<Value>& values);

}  // namespace sparseprune
