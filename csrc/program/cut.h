// A program cut in two: steps on images, and steps on tokens, on which no image depends.
#pragma once
#include <map>

#include "program/stages.h"

namespace sparseprune {

// Some steps of a program, as a program.
struct Part {
  std::vector<Step> steps;
  std::vector<int64_t> origins;  // of its steps
  std::vector<Sizes> sizes;      // of its inputs
  std::vector<Port> inputs, outputs;
  std::map<int64_t, int64_t> numbers;  // value of the program -> its own
  int64_t batch = -1;                  // items of every input; 0 where they differ
  bool sequences = false;              // are its items, of tokens that attention mixes
  int64_t length = 1;                  // tokens of the longest item

  bool has(int64_t value) const { return numbers.count(value) > 0; }
  void add(Step s, int64_t origin);
  int64_t tokens_of(const Shape& shape) const;
  void add_input(const Step& s, int64_t origin, const Sizes& given, int64_t tensor,
                 const Shape& shape);

  // For all inputs as they are.
  std::unique_ptr<Plan> plan(const std::vector<Weight>& weights, int64_t threads) const;
  // For this many items of a batch.
  std::unique_ptr<Plan> plan(int64_t items, const std::vector<Weight>& weights,
                             int64_t threads) const;
};

// What parts hand on to each other. Ports count buffers on behind the tensors of the call.
struct Between {
  int64_t inputs = 0, outputs = 0;  // tensors
  std::vector<int64_t> buffers;     // floats of each

  int64_t add(int64_t floats) {
    buffers.push_back(floats);
    return static_cast<int64_t>(buffers.size()) - 1;
  }
};

// A flatten is a step on images. What steps on tokens read of it goes through a buffer.
class Cut {
 public:
  // Not `apart`, all steps are in `images`.
  Cut(const std::vector<Step>& steps, const std::vector<Value>& values,
      const std::vector<Sizes>& inputs, bool apart);

  Part images, tokens;
  Between between;

 private:
  void add(const Step& s, int64_t origin);
  void cross(int64_t value);

  const std::vector<Step>& steps_;
  const std::vector<Value>& values_;
  const std::vector<Sizes>& sizes_;
  bool apart_;
  int64_t inputs_ = 0, outputs_ = 0;
};

}  // namespace sparseprune
