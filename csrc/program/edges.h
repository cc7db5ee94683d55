// Where the taps of a convolution leave the rows of its image, which have no padding between them.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/planes.h"
#include "kernels/cpu/planes.h"
#include "program/masks.h"
#include "program/steps.h"

namespace sparseprune {

// Masks of lanes, the same for every row of outputs: one per place of a tap in its row.
class Edges {
 public:
  // All taps of `window` from x to y, for columns of `channels` with all taps each and tiles of up
  // to `lanes`.
  Edges(const Window& window, const Planes& x, const Planes& y, int64_t channels, int64_t lanes);
  Edges() = default;

  // Of a tile whose first lane this is; all inside where rows have padding.
  Inside inside(int64_t lane) const;

 private:
  int64_t period_ = 1;       // of masks in lanes, whole lines
  std::vector<int32_t> of_;  // per column
  Masks masks_;              // of all places
};

}  // namespace sparseprune
