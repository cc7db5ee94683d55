// Scales of channels that convolutions take along: computed while panels are packed, in no pass of
// their own.
#pragma once
#include <optional>
#include <vector>

#include "program/plan.h"

namespace sparseprune {

// Per step of the program, the one that prepares what it reads: a scale by gates, or a factor and
// shift per channel (a depthwise step of one tap), clamped. It is for csr steps of one tap alone,
// which then read what it would have read, and is left out itself.
std::vector<std::optional<Step>> take_along(std::vector<Step>& steps,
                                            const std::vector<Value>& values);

}  // namespace sparseprune
