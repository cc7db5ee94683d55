// What a step does to its sums last. No torch here.
#pragma once
#include "formats/clamp.h"

namespace sparseprune {

struct Activation {
  enum Kind {
    kClamp,
    kLeaky,
    kElu,
    kSilu,
    kGelu,
    kGeluTanh,
    kHardswish,
    kHardsigmoid,
    kSigmoid,
    kTanh,
    kMish
  };
  Kind kind = kClamp;
  // Of kClamp; clamp.low is the slope of kLeaky, and what kElu multiplies e^v - 1 by, where
  // clamp.high multiplies what is positive.
  Clamp clamp;
};

}  // namespace sparseprune
