// The types of x, the values of W, bias and y, which share one.
#pragma once

namespace sparseprune {

enum class Element { float32, float16, bfloat16 };

}  // namespace sparseprune
