#include "program/prepare.h"

#include <algorithm>

namespace sparseprune {
namespace {

bool prepares(const Step& s) {
  if (s.activation.kind != Activation::kClamp) return false;
  if (s.word == Word::kScale) return true;
  return s.word == Word::kDepthwise && s.window.pointwise() && s.multiplier == 1 && s.y < 0;
}

bool takes(const Step& s, int64_t value, const std::vector<Value>& values) {
  return s.word == Word::kCsr && s.x == value && s.y != value && s.groups == 1 &&
         s.window.pointwise() && !values[value].shape.tokens;
}

}  // namespace

std::vector<std::optional<Step>> take_along(std::vector<Step>& steps,
                                            const std::vector<Value>& values) {
  std::vector<std::optional<Step>> before(steps.size());
  for (Step& s : steps) {
    if (!prepares(s)) continue;
    const auto reads = [&](const Step& other) { return other.x == s.out || other.y == s.out; };
    const bool taken = std::any_of(steps.begin(), steps.end(), reads) &&
                       std::all_of(steps.begin(), steps.end(), [&](const Step& other) {
                         return !reads(other) || takes(other, s.out, values);
                       });
    if (!taken) continue;
    for (size_t i = 0; i < steps.size(); ++i)
      if (steps[i].x == s.out) before[i] = s, steps[i].x = s.x;
    s.word = Word::kTaken;
  }
  return before;
}

}  // namespace sparseprune
