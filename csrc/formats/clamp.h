// What a layer does to its output last: relu is [0, inf], relu6 is [0, 6]. No torch here.
#pragma once
#include <limits>

namespace sparseprune {

// low where v < low, high where v > high, else v; a NaN stays a NaN, as in torch.
struct Clamp {
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
};

}  // namespace sparseprune
