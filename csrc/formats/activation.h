// What a step does to its sums last. No torch here.
#pragma once
#include "formats/clamp.h"

namespace sparseprune {

struct Activation {
  enum Kind { kClamp, kLeaky, kSilu, kGelu, kGeluTanh, kHardswish, kHardsigmoid, kSigmoid, kTanh };
  Kind kind = kClamp;
  Clamp clamp;  // of kClamp; clamp.low is the slope of kLeaky
};

}  // namespace sparseprune
