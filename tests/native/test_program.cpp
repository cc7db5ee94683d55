// Whole programs: every step, all layouts, any number of threads, against the same program on the
// portable kernels with one thread; and texts that are no programs.
#include <algorithm>
#include <map>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "kernels/cpu/isa.h"
#include "program/stages.h"

using namespace sparseprune;

namespace {

const std::string kThree = " 1 3 3", kOne = " 1 1 1", kPad = " 0 1 1", kNone = " 0 0 0";
const std::string kNothing = " clamp -inf inf", kRelu = " clamp 0.0 inf";

std::string window(const std::string& kernel, const std::string& stride, const std::string& padding,
                   const std::string& mode = " zeros") {
  return kernel + stride + padding + padding + kOne + mode;
}

// Steps on images; the numbers after `csr out x residual` are tensors, rows, cols, block, groups.
std::string image_program(const std::string& block) {
  const std::string same = window(kThree, kOne, kPad), half = window(kThree, " 1 2 2", kPad);
  return "input 0 image 6 2\n"
         "csr 1 0 -1 0 8 54 " +
         block + " 1 0" + same + kRelu +
         "\n"
         "csr 2 1 1 4 8 72 " +
         block + " 1 0" + same +
         " silu -inf inf\n"
         "csr 3 2 -1 8 8 72 " +
         block + " 1 0" + window(kThree, " 1 2 2", kPad, " reflect") + kNothing +
         "\n"
         "depthwise 4 3 -1 12 8 1 1" +
         same +
         " hardswish -inf inf\n"
         "depthwise 5 2 4 12 8 1 1" +
         half +
         " gelu -inf inf\n"
         "pool 6 5 max 1 0" +
         window(kThree, " 1 2 2", kPad) +
         "\n"
         "pool 7 5 avg 1 1" +
         window(kThree, " 1 2 2", kPad) +
         "\n"
         "add 8 6 7 leaky 0.1 inf\n"
         "cat 9 8 6\n"
         "mean 10 9\n"
         "scale 11 9 10 sigmoid -inf inf\n"
         "csr 12 11 -1 14 4 16 " +
         block + " 1 0" + window(kOne, kOne, kNone) +
         " tanh -inf inf\n"
         "output 12\n"
         "output 9\n"
         "flatten 13 10\n"
         "csr 14 13 -1 18 8 16 " +
         block + " 1 0" + window(kOne, kOne, kNone) + kRelu +
         "\n"
         "csr 15 14 14 22 8 8 " +
         block + " 1 0" + window(kOne, kOne, kNone) +
         " silu -inf inf\n"
         "output 13\n"
         "output 15\n"
         "output 2\n"
         "adaptive 16 9 1 4 3\n"
         "output 16\n"
         "adaptive 17 9 1 0 0\n"
         "add 18 17 9 leaky 0.1 inf\n"
         "output 18\n"
         "adaptive 19 17 1 1 1\n"
         "output 19\n"
         "channels 20 9 1 3 8\n"
         "upsample 21 20 1 2 3\n"
         "output 21\n"
         "channels 22 9 4 2 13\n"
         "cat 23 20 22\n"
         "cat 24 23 9\n"
         "output 24\n"
         "pixels 25 9 2\n"
         "norm 26 25 12 16 0 1 1e-05\n"
         "depthwise 27 26 25 12 16 1 0" +
         window(kOne, kOne, kNone) +
         " silu -inf inf\n"
         "picture 28 27 2\n"
         "add 29 28 9 clamp 0.0 inf\n"
         "multiply 30 9 29\n"
         "multiply 31 26 27\n"
         "output 29\n"
         "output 30\n"
         "output 31\n"
         "output 26";
}

std::string token_program(const std::string& block) {
  const std::string one = window(kOne, kOne, kNone);
  return "input 0 tokens 54 0\n"
         "csr 1 0 -1 0 8 54 " +
         block + " 1 0" + one + kRelu +
         "\n"
         "csr 2 1 1 14 8 8 " +
         block + " 1 0" + one +
         " gelu_tanh -inf inf\n"
         "output 2";
}

// Every kind of linear layer after every other, so that tokens change their form in between.
std::string mixed_program(const std::string& block) {
  const std::string one = window(kOne, kOne, kNone);
  return "input 0 tokens 54 0\n"
         "csr 1 0 -1 0 8 54 " +
         block + " 1 0" + one + kRelu +
         "\n"
         "bitmask 2 1 -1 26 70 8 1" +
         kRelu +
         "\n"
         "linear 3 2 1 30 8 70 0 gelu_tanh -inf inf\n"
         "csr 4 3 3 14 8 8 " +
         block + " 1 0" + one +
         " silu -inf inf\n"
         "linear 5 4 -1 31 70 8 1 clamp -0.5 inf\n"
         "bitmask 6 4 5 26 70 8 0 leaky 0.1 inf\n"
         "add 7 6 5 hardswish -inf inf\n"
         "sell 8 6 -1 33 8 70 0 tanh -inf inf\n"
         "sell 9 8 8 38 8 8 1 silu -inf inf\n"
         "output 7\n"
         "output 9\n"
         "output 2\n"
         "output 0\n"
         "output 4";
}

// Tokens that attention mixes, from values of other widths and channels than its own.
std::string sequence_program(const std::string& block) {
  const std::string one = window(kOne, kOne, kNone);
  return "input 0 tokens 54 0\n"
         "csr 1 0 -1 0 8 54 " +
         block + " 1 0" + one + kRelu +
         "\n"
         "norm 2 1 12 8 1 1 1e-05\n"
         "csr 3 2 2 14 8 8 " +
         block + " 1 0" + one +
         " silu -inf inf\n"
         "attention 4 3 2 3 -1 4 0 2 2 3 1 2 2 2 1 0.7\n"
         "norm 5 4 13 4 0 0 1e-06\n"
         "attention 6 4 3 3 -1 0 1 4 4 4 4 1 4 1 0 0.5\n"
         "add 7 6 5 clamp 0.0 inf\n"
         "rotary 8 3 4 5 2 7 1 6 4 1\n"
         "rotary 9 3 5 4 0 3 2 4 4 0\n"
         "multiply 10 9 2\n"
         "attention 11 3 2 3 -1 0 1 0 4 5 3 2 2 1 0 0.5\n"
         "output 11\n"
         "output 10\n"
         "output 8\n"
         "output 7\n"
         "output 5\n"
         "output 3\n"
         "output 2";
}

struct Weights {
  std::vector<Packed> packed;
  std::vector<float> taps, shift, dense, bias;
  std::vector<Weight> list;

  void add(const Packed& p, bool rows) {
    packed.push_back(p);
    const Packed& q = packed.back();
    const int64_t n = static_cast<int64_t>(q.values.size());
    list.push_back({q.values.data(), n, n});
    list.push_back(
        {rows ? static_cast<const void*>(q.wide_columns.data()) : q.columns.data(), n, n});
    list.push_back({q.counts.data(), static_cast<int64_t>(q.counts.size()), last});
    list.push_back({q.starts.data(), static_cast<int64_t>(q.starts.size()), 1});
  }
  void add_bits(const Packed& p) {
    packed.push_back(p);
    const Packed& q = packed.back();
    list.push_back({q.values.data(), static_cast<int64_t>(q.values.size()), 1});
    list.push_back({q.masks.data(), static_cast<int64_t>(q.masks.size()), 8});
    list.push_back({q.starts.data(), static_cast<int64_t>(q.starts.size()), 1});
  }
  void add_slices(const Packed& p) {
    packed.push_back(p);
    const Packed& q = packed.back();
    list.push_back({q.values.data(), static_cast<int64_t>(q.values.size()), 1});
    list.push_back({q.columns.data(), static_cast<int64_t>(q.columns.size()), 1});
    list.push_back({q.windows.data(), static_cast<int64_t>(q.windows.size()), 1});
    list.push_back({q.starts.data(), static_cast<int64_t>(q.starts.size()), 1});
    list.push_back({q.order.data(), static_cast<int64_t>(q.order.size()), 1});
  }
  int64_t last = 0;
};

using Pack = Packed (*)(const Dense&);
const std::map<std::string, std::pair<Pack, int64_t>> kLayouts = {
    {"rows", {pack_rows, 0}},
    {"groups", {[](const Dense& w) { return pack_groups(w, 24); }, 15}},
    {"sorted", {[](const Dense& w) { return pack_sorted(w, 24); }, 5}}};

Threads threads_of(int64_t count) {
  return {count, [](int64_t n, const std::function<void(int64_t)>& task) {
            std::vector<std::thread> others;
            for (int64_t i = 1; i < n; ++i) others.emplace_back(task, i);
            task(0);
            for (std::thread& other : others) other.join();
          }};
}

using Outputs = std::vector<std::vector<float>>;

Outputs run(const std::string& text, const Sizes& sizes, const std::vector<float>& x,
            const std::vector<Weight>& weights, int64_t threads) {
  const auto stages = make_stages(parse_program(text), {sizes}, weights, threads);
  const Guarded<float> input(x, Against::high_page);
  Outputs outputs;
  Call call{{input.read_only()}, {}, weights};
  for (const Sizes& s : stages->outputs) {
    int64_t count = 1;
    for (int64_t n : s) count *= n;
    outputs.emplace_back(static_cast<size_t>(count));
  }
  for (auto& y : outputs) call.outputs.push_back(y.data());
  std::vector<double> times(stages->steps.size());
  run_stages(*stages, call, threads_of(threads), times.data());
  expect(std::all_of(times.begin(), times.end(), [](double t) { return t >= 0; }), "times");
  return outputs;
}

void check_same(const Outputs& got, const Outputs& expected) {
  float scale = 1e-6f;  // of all outputs: what an activation limits came from sums as large
  for (const auto& y : expected)
    for (float v : y) scale = std::max(scale, std::abs(v));
  for (size_t o = 0; o < expected.size(); ++o) {
    float worst = 0;
    for (size_t i = 0; i < expected[o].size(); ++i)
      worst = std::max(worst, std::abs(got[o][i] - expected[o][i]));
    expect(got[o].size() == expected[o].size() && worst <= 1e-5f * scale,
           "output " + std::to_string(o) + " differs by " + std::to_string(worst));
  }
}

void check_one(const std::string& layout, const std::string& text, const Sizes& sizes,
               Random& random) {
  const auto [pack, last] = kLayouts.at(layout);
  Weights w;
  w.last = last;
  w.packed.reserve(12);  // the list points into them
  for (const int64_t cols : {54, 72, 72}) w.add(pack(random.dense(8, cols)), last == 0);
  w.taps = random.normals(72), w.shift = random.normals(8);
  w.list.push_back({w.taps.data(), 72, 9});
  w.list.push_back({w.shift.data(), 8, 8});
  w.add(pack(random.dense(sizes.size() < 4 ? 8 : 4, sizes.size() < 4 ? 8 : 16)), last == 0);
  for (const int64_t cols : {16, 8}) w.add(pack(random.dense(8, cols)), last == 0);
  w.dense = random.normals(560), w.bias = random.normals(70);
  w.add_bits(pack_bitmask(random.dense(70, 8)));
  w.list.push_back({w.bias.data(), 70, 70});
  w.list.push_back({w.dense.data(), 560, 70});
  w.list.push_back({w.dense.data(), 560, 8});
  w.list.push_back({w.bias.data(), 70, 70});
  w.add_slices(pack_sell(random.dense(8, 70), false));
  w.add_slices(pack_sell(random.dense(8, 8), true));
  w.list.push_back({w.bias.data(), 8, 8});
  int64_t count = 1;
  for (int64_t n : sizes) count *= n;
  const std::vector<float> x = random.normals(count);
  const Isa isa = current_isa();
  force_isa("scalar");
  const Outputs expected = run(text, sizes, x, w.list, 1);
  force_isa(isa_name(isa));
  Outputs first;
  for (const int64_t threads : {1, 2, 3, 5}) {
    std::snprintf(running, sizeof running, "%s program %s of %d threads=%d", isa_name(isa),
                  layout.c_str(), static_cast<int>(sizes[0]), static_cast<int>(threads));
    const Outputs got = run(text, sizes, x, w.list, threads);
    check_same(got, expected);
    if (threads == 1) first = got;
    expect(got == first, "threads change sums");
  }
}

void check_refused(const char* text) {
  std::snprintf(running, sizeof running, "program text '%s'", text);
  try {
    make_stages(parse_program(text), {{1, 6, 9, 9}}, {}, 1);
    expect(false, "must be refused");
  } catch (const std::invalid_argument& error) {
    expect(std::string(error.what()).find("run: ") == 0, error.what());
  }
}

}  // namespace

void check_programs(int64_t count, Random& random) {
  for (int64_t i = 0; i < std::max<int64_t>(count / 6, 2); ++i)
    for (const auto& [layout, _] : kLayouts) {
      const std::string block = layout == "rows" ? "0" : "24";
      const Sizes image{random.integer(0, 7), 6, random.integer(3, 40), random.integer(3, 40)};
      check_one(layout, image_program(block), image, random);
      for (const std::string& text : {token_program(block), mixed_program(block)})
        check_one(layout, text, {random.pick({0, 1, 3, 4, 5, 16, 40, 64, 65, 130, 192, 330}), 54},
                  random);
      const int64_t length = random.pick({1, 2, 5, 16, 17, 33, 64, 70, 130});
      check_one(layout, sequence_program(block), {random.integer(0, 7), length, 54}, random);
    }
  for (const char* text :
       {"jump 0 1",
        "input 0 image",
        "input 0 image 6 2 9",
        "input 0 picture 6 2",
        "input x image 6 2",
        "input 3 image 6 2",
        "output 0",
        "input 0 image 6 2\nmean 1 7",
        "input 0 image 5 2",
        "input 0 image 6 3",
        "input 0 image 6 2\nmean 1 -2",
        "input 0 image -6 2",
        "input 0 image 6 2\nadd 1 0 0 softplus 0 0",
        "input 0 image 6 2\nscale 1 0 0 clamp 0 0",
        "input 0 image 6 2\nturn 1 0",
        "input 0 image 6 2\nadaptive 1 0 1 7",
        "input 0 image 6 2\nadaptive 1 0 1 7 -7",
        "input 0 image 6 2\nadaptive 1 0 2 7 7\noutput 1",
        "input 0 image 6 2\nadaptive 1 0 1 65536 65537",
        "input 0 image 6 2\nadaptive 1 2 1 7 7",
        "input 0 image 6 2\nflatten 1 0\nadaptive 2 1 1 7 7",
        "input 0 image 6 2\nchannels 1 0 4 0 6\noutput 1",
        "input 0 image 6 2\nchannels 1 0 1 3 4\noutput 1",
        "input 0 image 6 2\nchannels 1 0 0 0 6\noutput 1",
        "input 0 image 6 2\nchannels 1 0 1 -1 6\noutput 1",
        "input 0 image 6 2\nflatten 1 0\nchannels 2 1 1 0 6\noutput 2",
        "input 0 image 6 2\nupsample 1 0 1 0 1\noutput 1",
        "input 0 image 6 2\nupsample 1 0 2 1 1\noutput 1",
        "input 0 image 6 2\nupsample 1 0 1 65536 65536\nupsample 2 1 1 65536 1\noutput 2",
        "input 0 image 6 2\npool 1 0 max 0 0 1 1 1 1 1 1 1 0 0 1 0 0 1 1 1 zeros",
        "input 0 image 6 2\nbitmask 1 0 -1 0 4 6 0 clamp 0 0",
        "input 0 image 6 2\nlinear 1 0 -1 0 4 6 0 clamp 0 0",
        "input 0 image 6 2\nflatten 1 0\nlinear 2 1 -1 0 4 6 0 clamp 0 0",
        "input 0 image 6 2\nflatten 1 0\nlinear 2 1 1 0 4 486 0 clamp 0 0",
        "input 0 image 6 2\nflatten 1 0\nbitmask 2 1 -1 0 4 486 0",
        "input 0 image 6 2\nflatten 1 0\nbitmask 2 1 -1 0 4 486 2 clamp 0 0",
        "input 0 image 6 2\npixels 1 0 1\noutput 1",
        "input 0 image 6 2\npixels 1 0 3\noutput 1",
        "input 0 image 6 2\npicture 1 0 2\noutput 1",
        "input 0 image 6 2\nflatten 1 0\npicture 2 1 2\noutput 2",
        "input 0 image 6 2\npixels 1 0 2\ndepthwise 2 1 -1 0 6 1 0 1 3 3 1 1 1 0 0 0 0 0 0 1 1 1 "
        "zeros clamp 0 0\noutput 2",
        "input 0 image 6 2\nnorm 1 0 0 6 0 1 1e-5\noutput 1",
        "input 0 image 6 2\nflatten 1 0\nnorm 2 1 0 6 0 1 1e-5\noutput 2",
        "input 0 image 6 2\nattention 1 0 0 0 -1 0 0 0 6 6 6 1 6 1 0 1\noutput 1",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 1 6 6 6 1 486 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 6 6 6 0 6 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 -1 0 6 6 6 1 6 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 3 -1 0 0 0 6 6 6 1 6 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 6 6 6 1 6 1 2 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 6 6 6 3 6 2 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 6 6 6 2 6 0 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 481 6 6 2 6 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nattention 2 1 1 1 -1 0 0 0 6 6 0 2 6 1 0 1\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nrotary 2 1 1 1 0 0 1 486 486 0\noutput 2",
        "input 0 image 6 2\nmultiply 1 0 1\noutput 1",
        "input 0 image 6 2\nmean 1 0\nmultiply 2 0 1\noutput 2",
        "input 0 image 6 2\nrotary 1 0 0 0 0 6 1 6 6 0\noutput 1",
        "input 0 image 6 2\nflatten 1 0\nrotary 2 1 1 1 0 6 1 486 486 2\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nrotary 2 1 1 1 1 6 1 486 486 0\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nrotary 2 1 1 1 0 6 1 4 4 0\noutput 2",
        "input 0 image 6 2\nflatten 1 0\nrotary 2 1 1 1 0 243 2 243 486 0\noutput 2"})
    check_refused(text);
}
