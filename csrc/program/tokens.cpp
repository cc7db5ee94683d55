#include "program/tokens.h"

#include <map>
#include <optional>

#include "program/layout.h"

namespace sparseprune {
namespace {

// Whether a step takes and makes rows (true) or tiles (false); none: what it reads decides.
std::optional<bool> wants_rows(const Step& s, int64_t tokens) {
  switch (s.word) {
    case Word::kBitmask:
    case Word::kSell:
    case Word::kFlatten:
      return true;
    case Word::kLinear:
      return tokens <= kDotTokens;
    case Word::kRotary:
    case Word::kAttention:
    case Word::kDepthwise:
    case Word::kPixels:
      return false;
    case Word::kCsr:
      return s.block == 0 && tokens <= kGatherTokens;
    default:
      return std::nullopt;
  }
}

// What the first reader with a wish asks of an input; rows, which are copied as they are, if none.
bool input_rows(const std::vector<Step>& steps, int64_t input, int64_t tokens) {
  for (const Step& s : steps)
    if (s.x == input || s.y == input || s.z == input || s.mask == input)
      if (const auto wish = wants_rows(s, tokens)) return *wish;
  return true;
}

class Turns {
 public:
  Turns(std::vector<Value>& values, int64_t lanes) : values_(values), lanes_(lanes) {}
  std::vector<Step> steps;

  // `value` in this form, turned at most once.
  int64_t in_form(int64_t value, bool rows) {
    if (value < 0 || !values_[value].shape.tokens || values_[value].rows_form == rows) return value;
    const auto [found, added] = turned_.try_emplace(value, static_cast<int64_t>(values_.size()));
    if (!added) return found->second;
    Value other;
    other.shape = values_[value].shape;
    lay_tokens(other, lanes_, rows);
    values_.push_back(other);
    Step turn{};
    turn.word = Word::kTurn, turn.out = found->second, turn.x = value;
    steps.push_back(turn);
    return turn.out;
  }

 private:
  std::vector<Value>& values_;
  int64_t lanes_;
  std::map<int64_t, int64_t> turned_;  // value -> the same in the other form
};

}  // namespace

std::vector<Step> lay_out_tokens(const std::vector<Step>& steps, std::vector<Value>& values,
                                 int64_t lanes) {
  Turns turns(values, lanes);
  for (Step s : steps) {
    if (s.word != Word::kOutput && values[s.out].shape.tokens) {
      const int64_t tokens = values[s.out].shape.images;
      const bool rows = s.word == Word::kInput
                            ? input_rows(steps, s.out, tokens)
                            : wants_rows(s, tokens).value_or(values[s.x].rows_form);
      lay_tokens(values[s.out], lanes, rows);
      for (int64_t* read : {&s.x, &s.y, &s.z, &s.mask}) *read = turns.in_form(*read, rows);
    }
    if (s.word == Word::kPicture) s.x = turns.in_form(s.x, false);
    turns.steps.push_back(s);
  }
  return std::move(turns.steps);
}

}  // namespace sparseprune
