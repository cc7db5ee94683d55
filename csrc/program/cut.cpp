#include "program/cut.h"

#include <algorithm>

namespace sparseprune {
namespace {

// Of one image or token.
int64_t floats(const Shape& s) { return s.channels * s.size[0] * s.size[1] * s.size[2]; }

}  // namespace

void Part::add(Step s, int64_t origin) {
  if (s.x >= 0) s.x = numbers.at(s.x);
  if (s.y >= 0) s.y = numbers.at(s.y);
  if (s.z >= 0) s.z = numbers.at(s.z);
  if (s.mask >= 0) s.mask = numbers.at(s.mask);
  if (s.out >= 0) s.out = numbers.emplace(s.out, numbers.size()).first->second;
  steps.push_back(s);
  origins.push_back(origin);
}

void Part::add_input(const Step& s, int64_t origin, const Sizes& given, int64_t tensor,
                     const Shape& shape) {
  add(s, origin);
  sizes.push_back(given);
  inputs.push_back({tensor, floats(shape) * tokens_of(shape)});
  length = std::max(length, tokens_of(shape));
  const int64_t items = shape.images / tokens_of(shape);
  const bool counted = !sequences || (shape.tokens && shape.lead.size() > 1);
  batch = counted && (batch < 0 || batch == items) ? items : 0;
}

// In an item: one but where items are sequences, or images of pixels.
int64_t Part::tokens_of(const Shape& shape) const {
  const bool several = (sequences && shape.tokens && !shape.lead.empty()) || shape.pixels;
  if (!several || shape.lead[0] == 0) return 1;
  return std::max<int64_t>(shape.images / shape.lead[0], 1);
}

std::unique_ptr<Plan> Part::plan(const std::vector<Weight>& weights, int64_t threads) const {
  auto made = make_plan(steps, sizes, weights, threads);
  for (Work& work : made->works) work.step = origins[work.step];
  return made;
}

std::unique_ptr<Plan> Part::plan(int64_t items, const std::vector<Weight>& weights,
                                 int64_t threads) const {
  Part other = *this;
  size_t input = 0;
  for (const Step& s : steps) {
    if (s.word != Word::kInput) continue;
    Sizes& its = other.sizes[input++];
    if (s.tokens && !sequences && its[0] != batch) its = {items, s.channels};
    its[0] = items;
  }
  return other.plan(weights, threads);
}

Cut::Cut(const std::vector<Step>& steps, const std::vector<Value>& values,
         const std::vector<Sizes>& inputs, bool apart)
    : steps_(steps), values_(values), sizes_(inputs), apart_(apart) {
  between.inputs = static_cast<int64_t>(inputs.size());
  for (const Step& s : steps) {
    between.outputs += s.word == Word::kOutput;
    tokens.sequences |= apart && s.word == Word::kAttention;
    apart_ &= s.word != Word::kPicture || values[s.x].shape.pixels;
  }
  for (size_t i = 0; i < steps.size(); ++i) add(steps[i], static_cast<int64_t>(i));
}

void Cut::add(const Step& s, int64_t origin) {
  if (s.word == Word::kInput) {
    Part& part = apart_ && s.tokens ? tokens : images;
    part.add_input(s, origin, sizes_[inputs_], inputs_, values_[s.out].shape);
    ++inputs_;
  } else if (s.word == Word::kOutput) {
    Part& part = images.has(s.x) ? images : tokens;
    const Shape& shape = values_[s.x].shape;
    part.outputs.push_back({outputs_++, floats(shape) * part.tokens_of(shape)});
    part.add(s, origin);
  } else if (!apart_ || !values_[s.x].shape.tokens || values_[s.x].shape.pixels) {
    images.add(s, origin);
  } else {
    cross(s.x);
    cross(s.y);
    cross(s.z);
    cross(s.mask);
    tokens.add(s, origin);
  }
}

// From the images into a buffer, and out of it as tokens, if the value comes from there.
void Cut::cross(int64_t value) {
  if (value < 0 || tokens.has(value)) return;
  const Shape& shape = values_[value].shape;
  const int64_t origin =
      std::find_if(steps_.begin(), steps_.end(), [&](const Step& s) { return s.out == value; }) -
      steps_.begin();
  const int64_t buffer = between.add(shape.images * shape.channels);
  Step to{}, from{};
  to.word = Word::kOutput, to.x = value;
  images.outputs.push_back({between.outputs + buffer, shape.channels});
  images.add(to, origin);
  from.word = Word::kInput, from.out = value, from.tokens = true, from.channels = shape.channels;
  tokens.add_input(from, origin, {shape.images, shape.channels}, between.inputs + buffer, shape);
}

}  // namespace sparseprune
