#include "program/stages.h"

#include <algorithm>

#include "kernels/cpu/table.h"
#include "program/innermost.h"
#include "program/shapes.h"
#include "program/tokens.h"

namespace sparseprune {
namespace {

constexpr int64_t kGroupTokens = 128;  // at least, of sequences that go together

class Stager {
 public:
  Stager(Stages& all, const std::vector<Weight>& weights, int64_t threads)
      : all_(all), weights_(weights), threads_(threads) {}

  // A batch as one.
  void whole(const Part& part) { add({part.plan(weights_, threads_), part.inputs, part.outputs}); }

  // False where a batch is better off as one.
  bool images(const Cut& cut) {
    if (cut.images.batch < 1) return false;
    const SmallEnd end(cut.images, cut.between, weights_);
    const int64_t n = std::min(cut.images.batch / threads_, kMostInnermost);
    const bool small = n > 1 && end.worth();
    if (!small && !shared(cut.images.batch)) return false;
    buffers(small ? end.between : cut.between);
    each(cut.images, small ? side_by_side(end, n) : 0);
    if (!cut.tokens.steps.empty()) tokens(cut.tokens);
    return true;
  }

  void tokens(const Part& part) {
    if (part.sequences) return sequences(part);
    const int64_t tile = panel_kernels().width * panel_kernels().max_vectors;
    int64_t count = shared(part.batch / tile);
    const int64_t left = part.batch - count * tile;
    if (left > 0 && left <= kDotTokens) count -= threads_;  // whose sums have another order
    if (count > 0)
      pieces(part, 0, count, tile);
    else
      whole(part);
  }

  // In groups whose tokens fill tiles, each begun in a tile of its own: sums do not depend on how
  // many threads share them. What threads cannot share equally all of them do, one after the other.
  void sequences(const Part& part) {
    if (part.batch < 1) return whole(part);
    const int64_t items = (kGroupTokens + part.length - 1) / part.length;
    const int64_t count = shared(part.batch / items);
    if (count) add({part.plan(items, weights_, 1), part.inputs, part.outputs, 0, count, items});
    for (int64_t first = count * items; first < part.batch; first += items) {
      const int64_t left = std::min(items, part.batch - first);
      add({part.plan(left, weights_, threads_), part.inputs, part.outputs, first});
    }
  }

 private:
  // Of this many pieces, those that give all threads the same; one piece is no share.
  int64_t shared(int64_t pieces) const { return pieces < 2 ? 0 : pieces / threads_ * threads_; }

  void buffers(const Between& between) {
    for (int64_t floats : between.buffers) {
      all_.buffers.push_back(all_.values);
      all_.values += (floats + 15) / 16 * 16;
    }
    all_.arena = all_.values;
  }

  // Images from `first` on, on their own.
  void each(const Part& part, int64_t first) {
    const int64_t left = part.batch - first;
    if (left > 0) pieces(part, first, shared(left), 1);
  }

  // As many groups of n images as give all threads the same; returns how many images they are.
  int64_t side_by_side(const SmallEnd& end, int64_t n) {
    const Part &head = end.head, &tail = end.tail;
    const int64_t count = tail.batch / n / threads_ * threads_;
    if (!head.outputs.empty())
      add({head.plan(1, weights_, 1), head.inputs, head.outputs, 0, count * n, 1});
    add({sparseprune::side_by_side(tail, n).plan(n, weights_, 1), tail.inputs, tail.outputs, 0,
         count, n});
    return count * n;
  }

  // Pieces of a batch from `first` on, then what is left as one.
  void pieces(const Part& part, int64_t first, int64_t count, int64_t items) {
    const int64_t rest = first + count * items, left = part.batch - rest;
    if (count) add({part.plan(items, weights_, 1), part.inputs, part.outputs, first, count, items});
    if (left) add({part.plan(left, weights_, threads_), part.inputs, part.outputs, rest});
  }

  void add(Stage stage) {
    all_.multiply_adds += stage.plan->multiply_adds * std::max<int64_t>(stage.pieces, 1);
    if (!stage.pieces) all_.arena = std::max(all_.arena, all_.values + stage.plan->arena);
    all_.stages.push_back(std::move(stage));
  }

  Stages& all_;
  const std::vector<Weight>& weights_;
  int64_t threads_;
};

}  // namespace

std::unique_ptr<Stages> make_stages(std::vector<Step> steps, const std::vector<Sizes>& inputs,
                                    const std::vector<Weight>& weights, int64_t threads) {
  auto all = std::make_unique<Stages>();
  all->steps = std::move(steps);
  const std::vector<Value> values = infer(all->steps, inputs);
  for (const Step& s : all->steps)
    if (s.word == Word::kOutput) all->outputs.push_back(sizes_of(all->steps, values[s.x].shape));
  Stager stager(*all, weights, threads);
  const Cut cut(all->steps, values, inputs, true);
  if (cut.images.steps.empty())
    stager.tokens(cut.tokens);
  else if (!stager.images(cut))
    stager.whole(Cut(all->steps, values, inputs, false).images);
  return all;
}

}  // namespace sparseprune
