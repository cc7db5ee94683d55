#include "program/build.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "kernels/cpu/table.h"
#include "program/prepare.h"
#include "program/shapes.h"
#include "program/tokens.h"

namespace sparseprune {
namespace {

constexpr int64_t kTasks = 4;  // per thread, where a work can be cut at will
constexpr int64_t kFewTaps = 9;

bool plain(const Window& w) {  // taps at fixed flat distances, as values lie
  return w.stride[0] * w.stride[1] * w.stride[2] == 1 && w.mode == PadMode::kZeros;
}

// Whether a step strides over the elements of its input itself. For more taps than that, a csr step
// is better off with phases, for each tap is packed.
bool strides(const Step& s) {
  const Window& w = s.window;
  if (plain(w) || w.mode != PadMode::kZeros) return false;
  if (s.word == Word::kDepthwise) return w.stride[2] == 2;
  return w.stride[2] <= 2 && w.taps() <= kFewTaps;
}

bool same_size(const Shape& a, const Shape& b) { return std::equal(a.size, a.size + 3, b.size); }

// An image that has the sizes asked for already is read where it lies.
std::vector<Step> without_copies(std::vector<Step> steps, const std::vector<Value>& values) {
  std::vector<int64_t> source(values.size());
  std::iota(source.begin(), source.end(), 0);
  for (Step& s : steps) {
    if (s.x >= 0) s.x = source[s.x];
    if (s.y >= 0) s.y = source[s.y];
    if (s.z >= 0) s.z = source[s.z];
    if (s.mask >= 0) s.mask = source[s.mask];
    if (s.word == Word::kAdaptive && same_size(values[s.x].shape, values[s.out].shape))
      source[s.out] = s.x;
  }
  return steps;
}

}  // namespace

int64_t Phases::index(int64_t position, int64_t stride) const {
  const auto at = std::lower_bound(residues.begin(), residues.end(), position % stride);
  return at - residues.begin();
}

Phases phases_of(const Window& w, int dim) {
  Phases p;
  for (int64_t k = 0; k < w.kernel[dim]; ++k) {
    const int64_t position = k * w.dilation[dim];
    p.residues.push_back(position % w.stride[dim]);
    p.furthest = std::max(p.furthest, position / w.stride[dim]);
  }
  std::sort(p.residues.begin(), p.residues.end());
  p.residues.erase(std::unique(p.residues.begin(), p.residues.end()), p.residues.end());
  return p;
}

Builder::Builder(const std::vector<Step>& steps, const std::vector<Sizes>& inputs,
                 const std::vector<Weight>& weights, int64_t threads)
    : weights_(weights),
      threads_(threads),
      lanes_(panel_kernels().width * panel_kernels().max_vectors),
      plan_(std::make_unique<Plan>()),
      layout_(plan_->values) {
  plan_->values = infer(steps, inputs);
  steps_ = lay_out_tokens(without_copies(steps, plan_->values), plan_->values, lanes_);
  before_ = take_along(steps_, plan_->values);
  taps_.resize(steps_.size());
  for (const Step& s : steps_) host(s);
  for (size_t i = 0; i < steps_.size(); ++i) constrain(i);
  layout_.resolve();
  for (size_t i = 0; i < steps_.size(); ++i) spread(i);
  match_residuals();
  for (Value& v : plan_->values) close_planes(v);
  for (size_t i = 0; i < steps_.size(); ++i) {
    emit(i);
    step_ += steps_[i].word != Word::kTurn;  // which counts with the step that wants it
  }
  plan_->arena = place(plan_->values) + 64;  // kernels may read a little behind a value
}

int64_t Builder::temporary(const Shape& shape) {
  plan_->values.push_back({shape, {}});
  return static_cast<int64_t>(plan_->values.size()) - 1;
}

void Builder::constrain(size_t step) {
  const Step& s = steps_[step];
  if (s.word == Word::kCsr || s.word == Word::kDepthwise) {
    if (!value(s.x).shape.tokens) constrain_window(step);
    if (s.y >= 0) layout_.same_pitch(s.out, s.y);
  } else if (s.word == Word::kAdd || s.word == Word::kMultiply || s.word == Word::kCat) {
    layout_.same_pitch(s.out, s.x);
    if (s.y >= 0) layout_.same_pitch(s.out, s.y);
  } else if (s.word == Word::kScale || s.word == Word::kChannels) {
    layout_.same_pitch(s.out, s.x);
  }
}

void Builder::constrain_window(size_t step) {
  const Step& s = steps_[step];
  const Window& w = s.window;
  Taps& taps = taps_[step];
  taps.source = s.x;
  if (plain(w) || strides(s)) {
    // A csr step knows the edges of rows (edges.h), others want zeros between them.
    const int64_t columns = s.word == Word::kCsr ? 0 : std::max(w.before[2], w.after[2]);
    layout_.padding(s.x, columns, std::max(w.before[1], w.after[1]));
    if (plain(w)) layout_.same_pitch(s.x, s.out);
    return;
  }
  Shape shape = value(s.x).shape;  // split: its padding is written out
  for (int d = 0; d < 3; ++d) {
    const Phases p = phases_of(w, d);
    taps.phases *= static_cast<int64_t>(p.residues.size());
    shape.size[d] = value(s.out).shape.size[d] + p.furthest;
  }
  shape.channels *= taps.phases;
  taps.source = temporary(shape);
  layout_.same_pitch(taps.source, s.out);
}

void Builder::tap_flats(const Step& s, Taps& taps) const {
  const Window& w = s.window;
  const Planes& p = plan_->values[taps.source].planes;
  const int64_t pitch[3] = {p.slice, p.row, 1};
  const bool whole = taps.source == s.x;
  Phases phases[3];
  for (int d = 0; d < 3; ++d) phases[d] = phases_of(w, d);
  int64_t k[3];
  for (k[0] = 0; k[0] < w.kernel[0]; ++k[0])
    for (k[1] = 0; k[1] < w.kernel[1]; ++k[1])
      for (k[2] = 0; k[2] < w.kernel[2]; ++k[2]) {
        int64_t phase = 0, flat = 0;
        for (int d = 0; d < 3; ++d) {
          const int64_t position = k[d] * w.dilation[d];
          if (whole) {
            flat += (position - w.before[d]) * pitch[d];
            continue;
          }
          phase = phase * static_cast<int64_t>(phases[d].residues.size()) +
                  phases[d].index(position, w.stride[d]);
          flat += position / w.stride[d] * pitch[d];
        }
        taps.phase.push_back(phase);
        taps.flat.push_back(flat);
      }
}

void Builder::spread(size_t step) {
  const Step& s = steps_[step];
  Taps& taps = taps_[step];
  if (taps.source < 0) return;
  tap_flats(s, taps);
  const Planes& y = value(s.out).planes;
  const auto [low, high] = std::minmax_element(taps.flat.begin(), taps.flat.end());
  int64_t end = y.lanes();
  if (strides(s)) {
    const Planes& x = value(s.x).planes;
    end = (y.depth - 1) * s.window.stride[0] * x.slice +
          (y.height - 1) * s.window.stride[1] * x.row + (y.width - 1) * s.window.stride[2] + 1;
  }
  reach(value(taps.source), std::max<int64_t>(-*low, 0), std::max<int64_t>(end + *high, 0));
}

// A csr step reads its residual at the positions where it writes, and channels lie in their host as
// it lays them.
void Builder::match_residuals() {
  std::vector<std::pair<int64_t, int64_t>> alike;
  for (const Step& s : steps_)
    if (s.word == Word::kCsr && s.y >= 0 && !value(s.y).shape.tokens) alike.push_back({s.out, s.y});
  for (size_t v = 0; v < plan_->values.size(); ++v)
    if (value(v).host >= 0) alike.push_back({v, value(v).host});
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [one, other] : alike) {
      Planes &a = value(one).planes, &b = value(other).planes;
      const int64_t lead = std::max(a.lead, b.lead);
      const int64_t plane = lead + std::max(a.plane - a.lead, b.plane - b.lead);
      changed |= a.lead != lead || b.lead != lead || a.plane != plane || b.plane != plane;
      a.lead = b.lead = lead, a.plane = b.plane = plane;
    }
  }
}

// Of one image, what is put side by side is made where it will lie, and channels that follow each
// other are read where they are: nothing is copied. A value lies in one other at most.
void Builder::host(const Step& s) {
  const auto lay = [&](int64_t part, int64_t whole, int64_t channel) {
    if (value(part).host >= 0 || value(whole).shape.images != 1) return;
    value(part).host = whole, value(part).channel = channel;
  };
  if (s.word == Word::kChannels && s.groups == 1) lay(s.out, s.x, s.begin);
  if (s.word != Word::kCat) return;
  lay(s.x, s.out, 0);
  if (s.y != s.x) lay(s.y, s.out, value(s.x).shape.channels);
}

void Builder::emit(size_t step) {
  const Step& s = steps_[step];
  switch (s.word) {
    case Word::kInput:
      return input(s);
    case Word::kOutput:
      return output(s);
    case Word::kCsr:
      return csr(step);
    case Word::kBitmask:
      return bitmask(s);
    case Word::kSell:
      return sell(s);
    case Word::kLinear:
      return linear(s);
    case Word::kDepthwise:
      return depthwise(step);
    case Word::kPool:
      return pool(s);
    case Word::kMean:
      return mean(s);
    case Word::kAdaptive:
      return adaptive(s);
    case Word::kUpsample:
      return upsample(s);
    case Word::kAdd:
    case Word::kMultiply:
      return add(s);
    case Word::kScale:
      return scale(s);
    case Word::kCat:
      return cat(s);
    case Word::kChannels:
      return channels(s);
    case Word::kFlatten:
      return flatten(s);
    case Word::kPixels:
      return pixels(s);
    case Word::kPicture:
      return picture(s);
    case Word::kNorm:
      return norm(s);
    case Word::kRotary:
      return rotary(s);
    case Word::kAttention:
      return attention(s);
    case Word::kTurn:
      return turn(s);
    case Word::kTaken:
      return;
  }
}

void Builder::work(int64_t tasks, std::initializer_list<int64_t> reads, int64_t writes,
                   std::function<void(const Call&, int64_t)> task) {
  const int64_t now = static_cast<int64_t>(plan_->works.size());
  for (int64_t v : reads)
    if (v >= 0) value(v).last = now;
  if (writes >= 0) {
    if (value(writes).first < 0) value(writes).first = now;
    value(writes).last = now;
  }
  plan_->works.push_back({step_, tasks, std::move(task)});
}

Builder::Live Builder::live(const Planes& p) {
  Live& found = live_[{p.depth, p.height, p.width, p.row, p.slice}];
  if (!found) {
    Masks mask(p.lanes());
    for (int64_t z = 0; z < p.depth; ++z)
      for (int64_t y = 0; y < p.height; ++y)
        std::fill_n(mask.begin() + z * p.slice + y * p.row, p.width, -1);
    found = std::make_shared<const Masks>(std::move(mask));
  }
  return found;
}

int64_t Builder::parts(int64_t total) const { return std::min(total, kTasks * threads_); }

void clear_margins(float* plane, const Planes& p) {
  std::fill_n(plane, p.lead, 0.f);
  std::fill(plane + p.lead + p.lanes(), plane + p.plane, 0.f);
}

std::unique_ptr<Plan> make_plan(const std::vector<Step>& steps, const std::vector<Sizes>& inputs,
                                const std::vector<Weight>& weights, int64_t threads) {
  return Builder(steps, inputs, weights, threads).take();
}

}  // namespace sparseprune
