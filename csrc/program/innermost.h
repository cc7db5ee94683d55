// Small images of a batch side by side, where an image alone leaves lanes empty.
//
//   one image, 2 x 2     a0 a1 . a2 a3 .     three of them     a0 b0 c0 a1 b1 c1 . . . a2 b2 c2 ...
//
// They are one image three times as wide, and a window over them is one that is dilated by three.
#pragma once
#include "program/cut.h"

namespace sparseprune {

constexpr int64_t kMostInnermost = 16;  // images of a thread that still find room in its cache

// Steps on images, cut where values are small until the end: behind the last stride, as a rule.
class SmallEnd {
 public:
  SmallEnd(const Part& images, const Between& between, const std::vector<Weight>& weights);

  Part head, tail;
  Between between;
  bool worth() const;  // laying images of the tail side by side

 private:
  void choose();
  bool head_reads(int64_t value) const;
  void add(size_t step);
  void add_input(Part& part, int64_t value) const;
  void enter(int64_t value);

  const Part& part_;
  const std::vector<Value> values_;
  std::vector<bool> small_;               // per step: of the tail
  std::map<int64_t, size_t> makers_;      // per value: its step
  std::map<int64_t, size_t> inputs_;      // per input's value: which input it is
  std::map<int64_t, int64_t> flattened_;  // tokens -> the image that they are
  size_t outputs_ = 0;
  int64_t multiply_adds_ = 0, moved_ = 0;  // of the tail, per image; floats in and out
};

// The part as a program on this many images as one.
Part side_by_side(const Part& part, int64_t images);

}  // namespace sparseprune
