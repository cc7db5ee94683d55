// The ops `run` and `run_times` on the CPU: a whole program in one call. Schemas in
// sparseprune/ops/run.py and run_times.py.
#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels/cpu/isa.h"
#include "ops/bitmask_args.h"
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

// A call whose stages are made and whose outputs are there.
struct Ready {
  std::shared_ptr<const Stages> stages;
  Threads threads;
  std::vector<Tensor> inputs, outputs;  // as the call points at them
  std::vector<Weight> views;
  Call call{{}, {}, views};

  Ready(std::vector<Tensor> given, const std::vector<Tensor>& weights, std::string program)
      : threads(torch_threads()), inputs(std::move(given)) {
    StagesKey key{std::move(program), {threads.count, static_cast<int64_t>(current_isa())}};
    take_inputs(key);
    for (const Tensor& t : weights) {
      views.push_back(weight(t));
      key.numbers.push_back(views.back().last);  // of counts, it tells the layout
    }
    stages = cached_stages(key, [&] {
      std::vector<Step> steps = parse_program(key.text);
      check_weights(steps, weights);
      return make_stages(std::move(steps), sizes, views, threads.count);
    });
    check_weights(stages->steps, weights);
    for (const Sizes& s : stages->outputs) {
      outputs.push_back(torch::stable::new_empty(
          inputs[0], torch::headeronly::IntHeaderOnlyArrayRef(s.data(), s.size())));
      call.outputs.push_back(outputs.back().mutable_data_ptr<float>());
    }
  }

 private:
  std::vector<Sizes> sizes;

  void take_inputs(StagesKey& key) {
    for (Tensor& x : inputs) {
      check(x.scalar_type() == ScalarType::Float && x.is_cpu(), kOp,
            ": inputs must be float32 on the CPU; convert them with .float()");
      x = dense_copy(x);
      call.inputs.push_back(x.const_data_ptr<float>());
      sizes.emplace_back(x.sizes().begin(), x.sizes().end());
      key.numbers.push_back(x.dim());
      key.numbers.insert(key.numbers.end(), sizes.back().begin(), sizes.back().end());
    }
  }
};

std::vector<Tensor> run(std::vector<Tensor> inputs, std::vector<Tensor> weights,
                        std::string program) {
  Ready ready(std::move(inputs), weights, std::move(program));
  run_stages(*ready.stages, ready.call, ready.threads);
  return std::move(ready.outputs);
}

Tensor run_times(std::vector<Tensor> inputs, std::vector<Tensor> weights, std::string program) {
  Ready ready(std::move(inputs), weights, std::move(program));
  const auto steps = static_cast<int64_t>(ready.stages->steps.size());
  Tensor times = torch::stable::empty({steps}, ScalarType::Double);
  torch::stable::zero_(times);
  run_stages(*ready.stages, ready.call, ready.threads, times.mutable_data_ptr<double>());
  return times;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, library) {
  library.impl("run", TORCH_BOX(&sparseprune::run));
  library.impl("run_times", TORCH_BOX(&sparseprune::run_times));
}
