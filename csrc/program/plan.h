// Steps made ready for the shapes of their inputs: where every value lies and what is to be done.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "formats/planes.h"
#include "kernels/cpu/csr_layers.h"
#include "program/steps.h"

namespace sparseprune {

using Sizes = std::vector<int64_t>;

// A weight tensor; `last` is its last dimension (counts tell their layout by it).
struct Weight {
  const void* data;
  int64_t numel, last;
};

// What one run works on. Inputs and outputs are contiguous float tensors.
struct Call {
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
  const std::vector<Weight>& weights;
  float* arena = nullptr;
};

// Independent tasks; they start when those of the work before have ended.
struct Work {
  int64_t step;  // of the program
  int64_t tasks;
  std::function<void(const Call&, int64_t)> task;
};

// A value is an image [images, channels, *size] or tokens [images, channels].
struct Shape {
  bool tokens = false;
  int64_t images = 0, channels = 0, size[3] = {1, 1, 1};
  Sizes lead;           // of tokens: the leading dimensions whose product is `images`
  bool pixels = false;  // tokens that are those of images, which go image by image
};

struct Value {
  Shape shape;
  Planes planes;  // tokens: tiles of lanes as images, or one row per token (see rows_form)
  bool rows_form = false;
  int64_t buffer = -1;            // first float in the arena
  int64_t first = -1, last = -1;  // works that write it first and read it last
  int64_t over = -1;  // a value that it may take the place of, where that is read for the last time
  int64_t host = -1, channel = 0;  // a value whose channels from `channel` on it is

  int64_t floats() const { return (planes.images * planes.image + 15) / 16 * 16; }
};

struct Plan {
  std::vector<Value> values;
  std::vector<Work> works;
  int64_t arena = 0;  // floats
  int64_t multiply_adds = 0;

  float* at(const Call& call, int64_t value) const { return call.arena + values[value].buffer; }
};

// Throws std::invalid_argument where shapes or weights do not fit the steps.
std::unique_ptr<Plan> make_plan(const std::vector<Step>& steps, const std::vector<Sizes>& inputs,
                                const std::vector<Weight>& weights, int64_t threads);

}  // namespace sparseprune
