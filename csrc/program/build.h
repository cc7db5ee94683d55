// Turns the steps of a program into works. One Builder makes one Plan.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "program/layout.h"
#include "program/masks.h"
#include "program/plan.h"

namespace sparseprune {

// Where a window reads: tap t of output position f is at flat[t] + f in channel
// c * phases + phase[t] of `source`.
struct Taps {
  int64_t source = -1;
  int64_t phases = 1;
  std::vector<int64_t> phase, flat;
};

// What a stride makes of one dimension: the residues that taps need, and where a tap reads.
struct Phases {
  std::vector<int64_t> residues;  // of tap positions modulo the stride, ascending
  int64_t furthest = 0;           // largest position / stride
  int64_t index(int64_t position, int64_t stride) const;
};
Phases phases_of(const Window& w, int dim);

class Builder {
 public:
  Builder(const std::vector<Step>& steps, const std::vector<Sizes>& inputs,
          const std::vector<Weight>& weights, int64_t threads);
  std::unique_ptr<Plan> take() { return std::move(plan_); }

 private:
  // First pass: what values need of their layout.
  void constrain(size_t step);
  void constrain_window(size_t step);
  // Second pass, with pitches known: how far windows read beyond a plane.
  void spread(size_t step);
  void tap_flats(const Step& s, Taps& taps) const;
  void match_residuals();
  void host(const Step& s);
  // Third pass, with planes known: works.
  void emit(size_t step);
  void input(const Step& s);
  void output(const Step& s);
  void input_innermost(const Step& s, int64_t from);
  void output_innermost(const Step& s, int64_t to);
  void mean_innermost(const Step& s);
  void csr(size_t step);
  template <typename W>
  void csr_panels(size_t step);
  void csr_gather(const Step& s);
  void split(const Step& s, const Taps& taps);
  void depthwise(size_t step);
  void pool(const Step& s);
  void mean(const Step& s);
  void adaptive(const Step& s);
  void upsample(const Step& s);
  void add(const Step& s);
  void scale(const Step& s);
  void cat(const Step& s);
  void channels(const Step& s);
  void copy_planes(int64_t x, std::vector<int64_t> from, int64_t out, int64_t first);
  void flatten(const Step& s);
  void turn(const Step& s);
  void pixels(const Step& s);
  void picture(const Step& s);
  void norm(const Step& s);
  void rotary(const Step& s);
  void attention(const Step& s);
  void bitmask(const Step& s);
  void sell(const Step& s);
  void linear(const Step& s);
  void linear_dots(const Step& s);
  void linear_panels(const Step& s);

  // A work that reads and writes these values (-1: none).
  void work(int64_t tasks, std::initializer_list<int64_t> reads, int64_t writes,
            std::function<void(const Call&, int64_t)> task);
  Value& value(int64_t v) { return plan_->values[v]; }
  int64_t temporary(const Shape& shape);
  using Live = std::shared_ptr<const Masks>;
  Live live(const Planes& p);
  // Parts of `total` equal pieces of work, a few per thread.
  int64_t parts(int64_t total) const;

  std::vector<Step> steps_;  // with a turn where a step reads tokens in another form
  const std::vector<Weight>& weights_;
  int64_t threads_, lanes_;
  int64_t step_ = 0;  // of the program, being emitted
  std::unique_ptr<Plan> plan_;
  Layout layout_;
  std::vector<Taps> taps_;                   // per step
  std::vector<std::optional<Step>> before_;  // per step: what prepares its input (prepare.h)
  int64_t inputs_ = 0, outputs_ = 0;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>, Live> live_;
};

// Calls body(item) for the items of part i of `parts` of [0, total).
template <typename Body>
void part(int64_t i, int64_t parts, int64_t total, const Body& body) {
  for (int64_t at = i * total / parts; at < (i + 1) * total / parts; ++at) body(at);
}

// Rows of one plane to consecutive floats; up to 16 floats behind a row are read.
void copy_rows(const float* from, const Planes& p, float* to);

// Zeros around the elements [0, lanes) of one plane.
void clear_margins(float* plane, const Planes& p);

}  // namespace sparseprune
