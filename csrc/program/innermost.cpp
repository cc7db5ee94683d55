#include "program/innermost.h"

#include <algorithm>

#include "program/shapes.h"

namespace sparseprune {
namespace {

constexpr int64_t kSmall = kFewElements;  // pixels of an image that is better off beside others
constexpr int64_t kWorth = 250;           // multiply-adds that repay moving a float in or out

int64_t pixels(const Shape& s) { return s.size[0] * s.size[1] * s.size[2]; }

bool reads(const Step& s, int64_t value) {
  return s.x == value || s.y == value || s.z == value || s.mask == value;
}

// Whether images side by side are to this step one wide image.
bool widens(const Step& s, const Shape& x, const Shape& y) {
  if (x.tokens || pixels(x) > kSmall || pixels(y) > (y.tokens ? 1 : kSmall)) return false;
  const Window& w = s.window;
  switch (s.word) {
    case Word::kCsr:
    case Word::kDepthwise:
    case Word::kPool:
      return w.stride[0] * w.stride[1] * w.stride[2] == 1 && w.mode == PadMode::kZeros;
    case Word::kAdaptive:
      return std::equal(x.size, x.size + 3, y.size);
    case Word::kMean:
    case Word::kAdd:
    case Word::kMultiply:
    case Word::kCat:
    case Word::kChannels:
    case Word::kFlatten:
      return true;
    default:
      return false;
  }
}

void widen(Step& s, int64_t images) {
  Window& w = s.window;
  if (s.word == Word::kInput || s.word == Word::kMean || s.word == Word::kOutput)
    s.innermost = images;
  if (s.word == Word::kAdaptive) std::fill_n(s.size, 3, 0);  // which changes nothing here
  w.before[2] *= images, w.after[2] *= images, w.dilation[2] *= images;
}

}  // namespace

SmallEnd::SmallEnd(const Part& images, const Between& before, const std::vector<Weight>& weights)
    : between(before), part_(images), values_(infer(images.steps, images.sizes)) {
  choose();
  for (size_t i = 0; i < part_.steps.size(); ++i) {
    add(i);
    const Step& s = part_.steps[i];
    if (small_[i] && s.word == Word::kCsr)
      multiply_adds_ += weights[s.tensors].numel * pixels(values_[s.out].shape);
  }
  for (const Port& port : tail.inputs) moved_ += port.item;
  for (const Port& port : tail.outputs) moved_ += port.item;
}

bool SmallEnd::worth() const { return multiply_adds_ > kWorth * moved_; }

// From the end on: all that reads what a step of the tail makes belongs to it.
void SmallEnd::choose() {
  small_.resize(part_.steps.size(), true);
  for (size_t i = part_.steps.size(); i-- > 0;) {
    const Step& s = part_.steps[i];
    if (s.word == Word::kOutput) continue;
    makers_[s.out] = i;
    small_[i] = s.word != Word::kInput && widens(s, values_[s.x].shape, values_[s.out].shape) &&
                !head_reads(s.out);
  }
  for (size_t i = 0; i < part_.steps.size(); ++i)
    if (part_.steps[i].word == Word::kOutput) small_[i] = small_[makers_.at(part_.steps[i].x)];
}

bool SmallEnd::head_reads(int64_t value) const {
  for (size_t i = 0; i < part_.steps.size(); ++i)
    if (!small_[i] && reads(part_.steps[i], value)) return true;
  return false;
}

void SmallEnd::add(size_t step) {
  Step s = part_.steps[step];
  const int64_t origin = part_.origins[step];
  if (s.word == Word::kInput) {
    inputs_[s.out] = inputs_.size();
    if (head_reads(s.out)) add_input(head, s.out);
  } else if (s.word == Word::kOutput) {
    Part& part = small_[step] ? tail : head;
    if (const auto same = flattened_.find(s.x); same != flattened_.end()) s.x = same->second;
    part.outputs.push_back(part_.outputs[outputs_++]);
    part.add(s, origin);
  } else if (!small_[step]) {
    head.add(s, origin);
  } else {
    enter(s.x);
    enter(s.y);
    if (s.word == Word::kFlatten)
      flattened_[s.out] = s.x;  // in an output the same floats
    else
      tail.add(s, origin);
  }
}

void SmallEnd::add_input(Part& part, int64_t value) const {
  const size_t maker = makers_.at(value), i = inputs_.at(value);
  part.add_input(part_.steps[maker], part_.origins[maker], part_.sizes[i], part_.inputs[i].tensor,
                 values_[value].shape);
}

// What the tail reads of inputs and, through a buffer, of the head.
void SmallEnd::enter(int64_t value) {
  if (value < 0 || tail.has(value)) return;
  if (inputs_.count(value)) return add_input(tail, value);
  const Shape& shape = values_[value].shape;
  const int64_t origin = part_.origins[makers_.at(value)], item = shape.channels * pixels(shape);
  const int64_t buffer = between.add(shape.images * item);
  const Sizes sizes = sizes_of(part_.steps, shape);
  Step to{}, from{};
  to.word = Word::kOutput, to.x = value;
  head.outputs.push_back({between.outputs + buffer, item});
  head.add(to, origin);
  from.word = Word::kInput, from.out = value, from.channels = shape.channels;
  from.dims = static_cast<int64_t>(sizes.size()) - 2;
  tail.add_input(from, origin, sizes, between.inputs + buffer, shape);
}

Part side_by_side(const Part& part, int64_t images) {
  Part wide = part;
  for (Step& s : wide.steps) widen(s, images);
  return wide;
}

}  // namespace sparseprune
