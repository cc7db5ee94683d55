// A program as stages: pieces of a batch, each on one thread, then what takes a batch at once.
#pragma once
#include "program/plan.h"

namespace sparseprune {

// Where an input or output of a stage lies.
struct Port {
  int64_t tensor;  // of the call or, counted on behind those, a buffer between stages
  int64_t item;    // floats from one item of the batch, an image or a token, to the next
};

struct Stage {
  std::unique_ptr<Plan> plan;
  std::vector<Port> inputs, outputs;
  int64_t first = 0;   // item of the batch that it begins with
  int64_t pieces = 0;  // that go through the plan on their own; 0: it takes all at once
  int64_t items = 0;   // in a piece
};

struct Stages {
  std::vector<Step> steps;
  std::vector<Stage> stages;  // one after the other
  std::vector<Sizes> outputs;
  std::vector<int64_t> buffers;  // between stages: their first floats in the arena
  int64_t values = 0;            // first float behind them, for the stage that runs
  int64_t arena = 0;             // floats
  int64_t multiply_adds = 0;
};

// Throws std::invalid_argument where shapes or weights do not fit the steps.
std::unique_ptr<Stages> make_stages(std::vector<Step> steps, const std::vector<Sizes>& inputs,
                                    const std::vector<Weight>& weights, int64_t threads);

// Sets call.arena to memory that this thread keeps. To `times`, one per step, are added the
// milliseconds that the first thread took for the works of each, waits included; of pieces, the
// mean of all of them, as often as a thread has them.
void run_stages(const Stages& stages, Call& call, const Threads& threads, double* times = nullptr);

}  // namespace sparseprune
