// Tokens lie in one of two forms: tiles, features first, which panels are; or one row per token.
#pragma once
#include "program/plan.h"

namespace sparseprune {

constexpr int64_t kDotTokens = 12;  // kGatherTokens for a dense weight, which four tokens share

// Lays out every value of tokens in the form that its step makes or, where that is free, its first
// reader wants. Returns the steps with a turn, which makes a new value, wherever a step reads the
// other form.
std::vector<Step> lay_out_tokens(const std::vector<Step>& steps, std::vector<Value>& values,
                                 int64_t lanes);

}  // namespace sparseprune
