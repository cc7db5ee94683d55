// Where the time of one csr tile goes: 64 tokens of a 1024 x 1024 layer, one thread, best of 30.
//   phases > benchmarks/results/phases-<cpu>.csv
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "kernels/cpu/table.h"
#include "pack.h"

using namespace sparseprune;

namespace {

constexpr int64_t kRows = 1024, kCols = 1024, kTokens = 64;

template <typename F>
double best_us(const F& run) {
  double best = 1e30;
  for (int i = 0; i < 30; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count() * 1e6);
  }
  return best;
}

float* aligned(int64_t floats) {
  float* p = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(floats) * 4));
  std::fill_n(p, floats, 1e-3f);
  return p;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

void measure(double sparsity, int64_t block) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.f, 1.f);
  Dense dense{kRows, kCols, std::vector<float>(kRows * kCols)};
  for (float& w : dense.weights) w = uniform(random) < sparsity ? 0.f : uniform(random) + .1f;
  const Packed r = pack_rows(dense), g = pack_groups(dense, block), s = pack_sorted(dense, block);
  const CsrRows rows{r.values.data(), r.wide_columns.data(), r.starts.data(), kRows, kCols};
  const CsrGroups groups{
      g.values.data(), g.columns.data(), g.counts.data(), g.starts.data(), kRows, kCols, block};
  const CsrSorted sorted{
      s.values.data(), s.columns.data(), s.counts.data(), s.starts.data(), kRows, kCols, block};

  const PanelKernels& panels = panel_kernels();
  const CsrKernels& kernels = csr_kernels();
  const int vectors = panels.max_vectors;
  const int64_t lanes = vectors * panels.width;
  static float *x = aligned(kTokens * kCols), *panel = aligned(kTokens * kCols),
               *acc = aligned(kTokens * (kRows + 128)), *y = aligned(kTokens * kRows);
  const auto print = [&](const char* phase, double us) {
    std::printf("\"%s\",%s,%.2f,%ld,%s,%ld,%.1f\n", cpu_name().c_str(), isa_name(current_isa()),
                sparsity, static_cast<long>(block), phase, static_cast<long>(kTokens),
                us * static_cast<double>(kTokens / lanes));
  };
  print("pack", best_us([&] {
          for (int64_t c = 0; c < kCols; c += block)
            panels.pack_tokens(x, kCols, lanes, c, std::min(c + block, kCols), panel, lanes);
        }));
  print("groups", best_us([&] {
          for (int64_t b = 0; b < groups.blocks(); ++b)
            kernels.groups(groups, b, panel, vectors, acc, 0, groups.groups(), {});
        }));
  print("sorted", best_us([&] {
          for (int64_t b = 0; b < sorted.blocks(); ++b)
            kernels.sorted(sorted, b, panel, vectors, acc, 0, sorted.segments(), {});
        }));
  print("rows", best_us([&] { kernels.rows(rows, panel, vectors, acc, 0, kRows, {}); }));
  print("store", best_us([&] { panels.store_tokens(acc, lanes, kRows, lanes, y, kRows, {}); }));
}

}  // namespace

int main() {
  std::puts("cpu,isa,sparsity,block,phase,tokens,us");
  for (const char* isa : {"avx512", "avx2", "scalar"}) {
    try {
      force_isa(isa);
    } catch (const std::exception&) {
      continue;  // not on this CPU
    }
    for (double sparsity : {.5, .7, .8, .9, .95})
      for (int64_t block : {128, 192, 240}) measure(sparsity, block);
  }
}
