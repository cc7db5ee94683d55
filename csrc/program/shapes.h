// The shape of every value of a program, checked.
#pragma once
#include "program/plan.h"

namespace sparseprune {

// Throws std::invalid_argument where inputs do not fit the steps.
std::vector<Value> infer(const std::vector<Step>& steps, const std::vector<Sizes>& inputs);

// Of the tensor that shows a value of this shape.
Sizes sizes_of(const std::vector<Step>& steps, const Shape& shape);

}  // namespace sparseprune
