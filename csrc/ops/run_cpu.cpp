// The ops `run` and `run_times` on the CPU: a whole program in one call. Schemas in
// sparseprune/ops/run.py and run_times.py.
#include <torch/csrc/stable/library.h>

#include <map>
#include <mutex>
#include <string>

#include "kernels/cpu/isa.h"
#include "ops/bitmask_args.h"
#include "ops/bound_call.h"
#include "ops/csr_args.h"
#include "ops/sell_args.h"
#include "ops/torch_threads.h"
#include "program/cache.h"

namespace sparseprune {
namespace {

constexpr const char* kOp = "run";

Weight weight(const Tensor& t) {
  const int64_t rank = t.dim();
  return {t.const_data_ptr(), t.numel(), rank ? t.size(rank - 1) : 0};
}

// What a kernel would read past, looked at on every call.
void check_tensor(const Tensor& t, ScalarType dtype, int64_t numel) {
  check(t.scalar_type() == dtype && t.is_contiguous() && t.is_cpu() && t.numel() == numel, kOp,
        ": weights must be as made by Program, contiguous on the CPU; convert the model again");
}

void check_csr(const Step& s, const std::vector<Tensor>& weights) {
  const Tensor* t = weights.data() + s.tensors;
  check(s.tensors + 4 + s.has_bias <= static_cast<int64_t>(weights.size()), kOp,
        ": weights must hold the tensors of every step, got ", weights.size());
  const std::optional<Tensor> bias = s.has_bias ? std::optional(t[4]) : std::nullopt;
  view_csr(kOp, t[0], {t[0], t[1], t[2], t[3], bias}, s.rows, s.cols, s.block);
}

void check_bitmask(const Step& s, const std::vector<Tensor>& weights) {
  const Tensor* t = weights.data() + s.tensors;
  check(s.tensors + 3 + s.has_bias <= static_cast<int64_t>(weights.size()), kOp,
        ": weights must hold the tensors of every step, got ", weights.size());
  const std::optional<Tensor> bias = s.has_bias ? std::optional(t[3]) : std::nullopt;
  check(t[0].scalar_type() == ScalarType::Float, kOp,
        ": x and weights must be float32; convert them with .float()");
  view_bitmask<float>(kOp, t[0], t[0], t[1], t[2], bias, s.rows, s.cols);
}

void check_sell(const Step& s, const std::vector<Tensor>& weights) {
  const Tensor* t = weights.data() + s.tensors;
  check(s.tensors + 5 + s.has_bias <= static_cast<int64_t>(weights.size()), kOp,
        ": weights must hold the tensors of every step, got ", weights.size());
  const std::optional<Tensor> bias = s.has_bias ? std::optional(t[5]) : std::nullopt;
  check(t[0].scalar_type() == ScalarType::Float, kOp,
        ": x and weights must be float32; convert them with .float()");
  view_sell(kOp, t[0], {t[0], t[1], t[2], t[3], t[4], bias}, s.rows, s.cols);
}

// A plain weight and its bias.
void check_plain(const Step& s, const std::vector<Tensor>& weights, int64_t rows, int64_t cols) {
  check(s.tensors + 1 + s.has_bias <= static_cast<int64_t>(weights.size()), kOp,
        ": weights must hold the tensors of every step, got ", weights.size());
  check_tensor(weights[s.tensors], ScalarType::Float, rows * cols);
  if (s.has_bias) check_tensor(weights[s.tensors + 1], ScalarType::Float, rows);
}

void check_weights(const std::vector<Step>& steps, const std::vector<Tensor>& weights) {
  for (const Step& s : steps) {
    if (s.word == Word::kCsr) check_csr(s, weights);
    if (s.word == Word::kBitmask) check_bitmask(s, weights);
    if (s.word == Word::kSell) check_sell(s, weights);
    if (s.word == Word::kLinear) check_plain(s, weights, s.rows, s.cols);
    if (s.word == Word::kNorm) check_plain(s, weights, s.channels, 1);
    if (s.word == Word::kDepthwise)
      check_plain(s, weights, s.channels * s.multiplier, s.window.taps());
  }
}

// A program with its weights.
class Bound {
 public:
  Bound(std::vector<Tensor> weights, std::string program)
      : weights_(std::move(weights)), program_(std::move(program)) {
    for (const Tensor& t : weights_) {
      views_.push_back(weight(t));
      lasts_.push_back(views_.back().last);  // of counts, it tells the layout
    }
  }

  // Makes the outputs with `empty`. Milliseconds of steps are added to `times`, if there are any.
  template <typename Empty>
  void run(std::vector<const float*> inputs, const std::vector<Sizes>& sizes, const Empty& empty,
           double* times = nullptr) {
    Call call{std::move(inputs), {}, views_};
    const Threads threads = torch_threads();
    const std::shared_ptr<const Stages> stages = stages_of(sizes, threads.count);
    for (const Sizes& s : stages->outputs) call.outputs.push_back(empty(s));
    run_stages(*stages, call, threads, times);
  }

  std::vector<Tensor> run(std::vector<Tensor> inputs, double* times = nullptr) {
    std::vector<const float*> x;
    std::vector<Sizes> sizes;
    for (Tensor& input : inputs) {
      check(input.scalar_type() == ScalarType::Float && input.is_cpu(), kOp,
            ": inputs must be float32 on the CPU; convert them with .float()");
      input = dense_copy(input);
      x.push_back(input.const_data_ptr<float>());
      sizes.emplace_back(input.sizes().begin(), input.sizes().end());
    }
    std::vector<Tensor> outputs;
    const auto empty = [&](const Sizes& s) {
      outputs.push_back(torch::stable::new_empty(
          inputs[0], torch::headeronly::IntHeaderOnlyArrayRef(s.data(), s.size())));
      return outputs.back().mutable_data_ptr<float>();
    };
    run(std::move(x), sizes, empty, times);
    return outputs;
  }

  // The number of steps, which are checked against the weights.
  int64_t steps() {
    const std::vector<Step> steps = parse_program(program_);
    check_weights(steps, weights_);
    return static_cast<int64_t>(steps.size());
  }

  // Whether the weights lie elsewhere than when they were bound: their views dangle.
  bool moved() const {
    for (size_t i = 0; i < views_.size(); ++i)
      if (weights_[i].const_data_ptr() != views_[i].data) return true;
    return false;
  }

  std::shared_ptr<Bound> again() const { return std::make_shared<Bound>(weights_, program_); }

 private:
  // Those of the last call, where it was like this one.
  std::shared_ptr<const Stages> stages_of(const std::vector<Sizes>& sizes, int64_t threads) {
    std::vector<int64_t> numbers{threads, static_cast<int64_t>(current_isa())};
    for (const Sizes& s : sizes) {
      numbers.push_back(static_cast<int64_t>(s.size()));
      numbers.insert(numbers.end(), s.begin(), s.end());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (last_ && numbers == numbers_) return last_;
    StagesKey key{program_, numbers};
    key.numbers.insert(key.numbers.end(), lasts_.begin(), lasts_.end());
    auto stages = cached_stages(key, [&] {
      std::vector<Step> steps = parse_program(program_);
      check_weights(steps, weights_);
      return make_stages(std::move(steps), sizes, views_, threads);
    });
    check_weights(stages->steps, weights_);
    numbers_ = std::move(numbers), last_ = std::move(stages);
    return last_;
  }

  std::vector<Tensor> weights_;
  std::string program_;
  std::vector<Weight> views_;
  std::vector<int64_t> lasts_;
  std::mutex mutex_;  // of what follows
  std::vector<int64_t> numbers_;
  std::shared_ptr<const Stages> last_;
};

std::vector<Tensor> run(std::vector<Tensor> inputs, std::vector<Tensor> weights,
                        std::string program) {
  return Bound(std::move(weights), std::move(program)).run(std::move(inputs));
}

Tensor run_times(std::vector<Tensor> inputs, std::vector<Tensor> weights, std::string program) {
  Bound bound(std::move(weights), std::move(program));
  Tensor times = torch::stable::empty({bound.steps()}, ScalarType::Double);
  torch::stable::zero_(times);
  bound.run(std::move(inputs), times.mutable_data_ptr<double>());
  return times;
}

// Bound programs by their numbers.
class Bindings {
 public:
  int64_t add(std::shared_ptr<Bound> bound) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bound_.emplace(++last_, std::move(bound));
    return last_;
  }
  void remove(int64_t number) {
    std::shared_ptr<Bound> gone;  // whose tensors go without the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = bound_.find(number);
    if (found == bound_.end()) return;
    gone = std::move(found->second);
    bound_.erase(found);
  }
  std::shared_ptr<Bound> at(int64_t number) {
    std::shared_ptr<Bound> bound = find(number);
    if (!bound->moved()) return bound;
    bound = bound->again();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = bound_.find(number); found != bound_.end()) found->second = bound;
    return bound;
  }

 private:
  std::shared_ptr<Bound> find(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = bound_.find(number);
    check(found != bound_.end(), "run_bound: bound must be what run_bind gave, got ", number,
          "; bind the program again");
    return found->second;
  }

  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Bound>> bound_;
  int64_t last_ = 0;
};

Bindings& bindings() {
  static Bindings* all = new Bindings;  // never destroyed: torch may be gone before
  return *all;
}

int64_t run_bind(std::vector<Tensor> weights, std::string program) {
  auto bound = std::make_shared<Bound>(std::move(weights), std::move(program));
  bound->steps();
  return bindings().add(std::move(bound));
}

void run_bound(const BoundCall& call) {
  std::vector<Sizes> sizes;
  for (int64_t i = 0; i < call.inputs; ++i)
    sizes.emplace_back(call.sizes[i], call.sizes[i] + call.ranks[i]);
  const auto empty = [&](const Sizes& s) {
    return call.allocate(call.context, s.data(), static_cast<int64_t>(s.size()));
  };
  bindings().at(call.number)->run({call.x, call.x + call.inputs}, sizes, empty);
}

int64_t run_release(int64_t number) {
  bindings().remove(number);
  return number;
}

}  // namespace
}  // namespace sparseprune

extern "C" __attribute__((visibility("default"))) const char* sparseprune_run_bound(
    const sparseprune::BoundCall* call) {
  static thread_local std::string message;
  try {
    sparseprune::run_bound(*call);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("run", TORCH_BOX(&sparseprune::run));
  library.impl("run_times", TORCH_BOX(&sparseprune::run_times));
}

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CompositeExplicitAutograd, library) {
  library.impl("run_bind", TORCH_BOX(&sparseprune::run_bind));
  library.impl("run_release", TORCH_BOX(&sparseprune::run_release));
}
