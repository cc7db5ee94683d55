// Small images side by side (program/innermost.h): each must come out as it does alone, bit by bit.
#include <memory>

#include "check.h"
#include "program/stages.h"

using namespace sparseprune;

namespace {

constexpr int64_t kIn = 8, kChannels = 32;

std::string square(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation = 1) {
  const auto three = [](int64_t first, int64_t n) {
    std::string words;
    for (const int64_t word : {first, n, n}) words += ' ', words += std::to_string(word);
    return words;
  };
  const std::string pads = three(0, padding);
  return three(1, kernel) + three(1, stride) + pads + pads + three(1, dilation) + " zeros";
}

// All that may stand in the small end of a program; values 1 and 2 come to it from before.
std::string program(const std::string& block) {
  const std::string one = block + " 1 0" + square(1, 1, 0), relu = " clamp 0.0 inf\n";
  const std::string same = block + " 1 0" + square(3, 1, 1), nothing = " clamp -inf inf\n";
  return "input 0 image 8 2\n"
         "csr 1 0 -1 0 32 72 " +
         block + " 1 0" + square(3, 2, 1) + relu + "csr 2 0 -1 4 32 8 " + block + " 1 0" +
         square(1, 2, 0) + nothing + "csr 3 1 2 8 32 288 " + same + relu + "csr 4 3 -1 12 32 480 " +
         block + " 1 0 1 5 3 1 1 1 0 4 0 0 0 2 1 1 1 zeros" +
         " silu -inf inf\n"
         "csr 5 4 4 8 32 288 " +
         same + nothing + "depthwise 6 5 3 20 32 1 1" + square(3, 1, 2, 2) + relu +
         "pool 7 6 max 0 0" + square(3, 1, 1) + "\npool 8 6 avg 0 0" + square(3, 1, 1) +
         "\nadd 9 7 8 leaky 0.1 inf\n"
         "channels 10 9 2 0 32\n"
         "cat 11 10 3\n"
         "csr 12 11 10 16 32 64 " +
         one + relu +
         "multiply 13 12 3\n"
         "adaptive 14 13 1 0 0\n"
         "mean 15 14\n"
         "flatten 16 15\n"
         "output 16\n"
         "flatten 17 13\n"
         "output 17\n"
         "output 15\n"
         "output 1";
}

using Pack = Packed (*)(const Dense&);
struct Layout {
  const char* name;
  Pack pack;
  const char* block;
  int64_t last;
};
const Layout kLayouts[] = {{"rows", pack_rows, "0", 0},
                           {"groups", [](const Dense& w) { return pack_groups(w, 24); }, "24", 15},
                           {"sorted", [](const Dense& w) { return pack_sorted(w, 24); }, "24", 5}};

struct Weights {
  std::vector<Packed> packed;
  std::vector<float> taps, shift;
  std::vector<Weight> list;

  Weights(const Layout& layout, Random& random) {
    packed.reserve(5);  // the list points into them
    for (const int64_t cols : {72, 8, 288, 480, 64}) {
      Dense dense{kChannels, cols, random.normals(kChannels * cols)};
      for (float& v : dense.weights) v *= random.share() < 0.9 ? 0.1f : 0.f;
      add(layout.pack(dense), layout.last);
    }
    taps = random.normals(9 * kChannels), shift = random.normals(kChannels);
    list.push_back({taps.data(), 9 * kChannels, 9});
    list.push_back({shift.data(), kChannels, kChannels});
  }
  void add(Packed p, int64_t last) {
    packed.push_back(std::move(p));
    const Packed& q = packed.back();
    const auto n = static_cast<int64_t>(q.values.size());
    const void* columns = q.columns.data();
    if (!last) columns = q.wide_columns.data();
    list.push_back({q.values.data(), n, n});
    list.push_back({columns, n, n});
    list.push_back({q.counts.data(), static_cast<int64_t>(q.counts.size()), last});
    list.push_back({q.starts.data(), static_cast<int64_t>(q.starts.size()), 1});
  }
};

using Outputs = std::vector<std::vector<float>>;

Outputs run(const std::string& text, const Sizes& sizes, const float* x, const Weights& weights,
            int64_t threads) {
  const auto stages = make_stages(parse_program(text), {sizes}, weights.list, threads);
  int64_t beside = 0;
  for (const Stage& stage : stages->stages) beside += stage.items > 1;
  expect(beside == (sizes[0] / threads > 1), "stages of images side by side");
  const int64_t count = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  const Guarded<float> input(std::vector<float>(x, x + count), Against::high_page);
  std::vector<std::unique_ptr<Guarded<float>>> y;
  Call call{{input.read_only()}, {}, weights.list};
  for (const Sizes& s : stages->outputs) {
    size_t floats = 1;
    for (int64_t n : s) floats *= static_cast<size_t>(n);
    y.push_back(std::make_unique<Guarded<float>>(std::vector<float>(floats), Against::high_page));
    call.outputs.push_back(y.back()->data());
  }
  run_stages(*stages, call, real_threads(threads));
  Outputs outputs;
  for (size_t o = 0; o < y.size(); ++o) {
    expect(y[o]->surroundings_intact(), "wrote outside an output");
    int64_t floats = 1;
    for (int64_t n : stages->outputs[o]) floats *= n;
    outputs.emplace_back(y[o]->data(), y[o]->data() + floats);
  }
  return outputs;
}

void check_batch(const Layout& layout, Random& random) {
  const Weights weights(layout, random);
  const std::string text = program(layout.block);
  const Sizes sizes{random.integer(2, 40), kIn, random.integer(5, 16), random.integer(5, 16)};
  const int64_t item = kIn * sizes[2] * sizes[3];
  const std::vector<float> x = random.normals(sizes[0] * item);
  Outputs expected(4);
  for (int64_t n = 0; n < sizes[0]; ++n) {
    const Outputs one = run(text, {1, kIn, sizes[2], sizes[3]}, x.data() + n * item, weights, 1);
    for (size_t o = 0; o < one.size(); ++o)
      expected[o].insert(expected[o].end(), one[o].begin(), one[o].end());
  }
  for (const int64_t threads : {1, 2, 3, 7}) {
    std::snprintf(running, sizeof running, "innermost %s %d of %d x %d threads=%d", layout.name,
                  static_cast<int>(sizes[0]), static_cast<int>(sizes[2]),
                  static_cast<int>(sizes[3]), static_cast<int>(threads));
    expect(run(text, sizes, x.data(), weights, threads) == expected, "images differ");
  }
}

}  // namespace

void check_innermost(int64_t count, Random& random) {
  for (int64_t i = 0; i < std::max<int64_t>(count / 6, 2); ++i)
    for (const Layout& layout : kLayouts) check_batch(layout, random);
}
