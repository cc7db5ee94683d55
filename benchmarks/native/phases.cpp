// Where the time of one csr tile goes: 64 tokens of a 1024 x 1024 layer, one thread, median of 30;
// six weights in turn, so that no branch predictor knows them by heart. Rows of csr/groups are
// in order and those of csr/sorted paired by count alone (pack.h), not joined by what they share.
//   phases > benchmarks/results/phases-<cpu>.csv
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "cpu.h"
#include "kernels/cpu/table.h"
#include "pack.h"

using namespace sparseprune;

namespace {

constexpr int64_t kRows = 1024, kCols = 1024, kTokens = 64;
constexpr int kWeights = 6;

// run(number of a weight)
template <typename F>
double median_us(const F& run) {
  std::array<double, 5 * kWeights> us;
  for (size_t i = 0; i < us.size(); ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(i % kWeights);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    us[i] = taken.count() * 1e6;
  }
  std::nth_element(us.begin(), us.begin() + us.size() / 2, us.end());
  return us[us.size() / 2];
}

float* aligned(int64_t floats) {
  float* p = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(floats) * 4));
  std::fill_n(p, floats, 1e-3f);
  return p;
}

Dense random_weight(double sparsity, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0.f, 1.f);
  Dense dense{kRows, kCols, std::vector<float>(kRows * kCols)};
  for (float& w : dense.weights) w = uniform(random) < sparsity ? 0.f : uniform(random) + .1f;
  return dense;
}

template <typename W>
W view(const Packed& p, int64_t block) {
  return {p.values.data(), p.columns.data(), p.counts.data(), p.starts.data(), kRows, kCols, block};
}

void measure(double sparsity, int64_t block) {
  std::mt19937 random(1);
  std::vector<Packed> rows, groups, sorted;
  for (int i = 0; i < kWeights; ++i) {
    const Dense dense = random_weight(sparsity, random);
    rows.push_back(pack_rows(dense));
    groups.push_back(pack_groups(dense, block));
    sorted.push_back(pack_sorted(dense, block));
  }
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
  print("pack", median_us([&](size_t) {
          for (int64_t c = 0; c < kCols; c += block)
            panels.pack_tokens(x, kCols, lanes, c, std::min(c + block, kCols), panel, lanes);
        }));
  print("groups", median_us([&](size_t i) {
          const auto w = view<CsrGroups>(groups[i], block);
          for (int64_t b = 0; b < w.blocks(); ++b)
            kernels.groups(w, b, panel + b * block * lanes, vectors, acc, 0, w.groups(), {});
        }));
  print("sorted", median_us([&](size_t i) {
          const auto w = view<CsrSorted>(sorted[i], block);
          for (int64_t b = 0; b < w.blocks(); ++b)
            kernels.sorted(w, b, {panel + b * block * lanes, lanes}, vectors, acc, 0, w.segments(),
                           {});
        }));
  print("rows", median_us([&](size_t i) {
          const CsrRows w{rows[i].values.data(), rows[i].wide_columns.data(), rows[i].starts.data(),
                          kRows, kCols};
          kernels.rows(w, panel, vectors, acc, 0, kRows, {});
        }));
  print("store",
        median_us([&](size_t) { panels.store_tokens(acc, lanes, kRows, lanes, y, kRows, {}); }));
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
