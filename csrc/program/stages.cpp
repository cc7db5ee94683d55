#include "program/stages.h"

#include <algorithm>

#include "kernels/cpu/table.h"
#include "program/cut.h"
#include "program/shapes.h"
#include "program/tokens.h"

namespace sparseprune {
namespace {

constexpr int64_t kGroupTokens = 128;  // at least, of sequences that go together

class Stager {
 public:
  Stager(Stages& all, const std::vector<Weight>& weights, int64_t threads)
      : all_(all), weights_(weights), threads_(threads) {}

  // Of this many pieces, those that give all threads the same; one piece is no share.
  int64_t shared(int64_t pieces) const { return pieces < 2 ? 0 : pieces / threads_ * threads_; }

  // A batch as one.
  void whole(const Part& part) { add({part.plan(weights_, threads_), part.inputs, part.outputs}); }

  void images(const Cut& cut) {
    for (int64_t floats : cut.buffers) {
      all_.buffers.push_back(all_.values);
      all_.values += (floats + 15) / 16 * 16;
    }
    all_.arena = all_.values;
    pieces(cut.images, shared(cut.images.batch), 1);
    if (!cut.tokens.steps.empty()) tokens(cut.tokens);
  }

  void tokens(const Part& part) {
    if (part.sequences) return sequences(part);
    const int64_t tile = panel_kernels().width * panel_kernels().max_vectors;
    int64_t count = shared(part.batch / tile);
    const int64_t left = part.batch - count * tile;
    if (left > 0 && left <= kDotTokens) count -= threads_;  // whose sums have another order
    if (count > 0)
      pieces(part, count, tile);
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
  // The first pieces of a batch on their own, then what is left as one.
  void pieces(const Part& part, int64_t count, int64_t items) {
    const int64_t first = count * items, left = part.batch - first;
    add({part.plan(items, weights_, 1), part.inputs, part.outputs, 0, count, items});
    if (left) add({part.plan(left, weights_, threads_), part.inputs, part.outputs, first});
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
  else if (stager.shared(cut.images.batch))
    stager.images(cut);
  else
    stager.whole(Cut(all->steps, values, inputs, false).images);
  return all;
}

}  // namespace sparseprune
