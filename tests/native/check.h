// What every file of native tests shares: expectations, random problems, comparisons.
#pragma once
#include <atomic>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "guarded.h"
#include "kernels/cpu/threads.h"
#include "pack.h"

inline char running[512];  // what a fault was doing
inline int failures = 0, checked = 0;

inline void expect(bool holds, const std::string& what) {
  ++checked;
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s: %s\n", running, what.c_str());
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  double share() { return std::uniform_real_distribution<double>(0, 1)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  int64_t pick(std::initializer_list<int64_t> values) {
    return values.begin()[integer(0, static_cast<int64_t>(values.size()) - 1)];
  }
  std::vector<float> normals(int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& value : v) value = normal();
    return v;
  }
  Dense dense(int64_t rows, int64_t cols) {
    const double density = static_cast<double>(pick({0, 2, 10, 30, 60, 100})) / 100;
    Dense w{rows, cols, normals(rows * cols)};
    for (float& value : w.weights)
      if (share() >= density) value = 0.f;
    return w;
  }

 private:
  std::mt19937 engine_;
};

inline sparseprune::Threads real_threads(int64_t count) {
  return {count, [count](int64_t n, const std::function<void(int64_t)>& task) {
            std::atomic<int64_t> next{0};
            const auto work = [&] {
              for (int64_t i = next++; i < n; i = next++) task(i);
            };
            std::vector<std::thread> others;
            for (int64_t t = 1; t < count; ++t) others.emplace_back(work);
            work();
            for (std::thread& other : others) other.join();
          }};
}

struct Expected {
  std::vector<double> y, scale;  // scale: the sum of magnitudes, which bounds rounding
};

inline void compare(const Guarded<float>& y, const Expected& expected) {
  expect(y.surroundings_intact(), "wrote outside y");
  for (size_t i = 0; i < expected.y.size(); ++i) {
    const double error = std::abs(y[i] - expected.y[i]);
    if (error <= 3e-6 * expected.scale[i] + 1e-7) continue;
    return expect(false, "y[" + std::to_string(i) + "] = " + std::to_string(y[i]) + ", not " +
                             std::to_string(expected.y[i]));
  }
  expect(true, "");
}

// The kernels of dense weights, for the current instruction set (test_dense.cpp).
void check_dense(int64_t count, Random& random);

// Every kernel over planes, for the current instruction set (test_planes.cpp, test_windows.cpp,
// test_pool.cpp).
void check_planes(int64_t count, Random& random);
void check_rows(int64_t count, Random& random);
void check_windows(int64_t count, Random& random);
void check_pools(int64_t count, Random& random);
void check_sequences(int64_t count, Random& random);  // test_sequences.cpp

// Layers of blocks, for the current instruction set (test_block.cpp); the index maths of their CUDA
// kernels (test_block_tiles.cpp) and of tensor cores (test_mma_fragments.cpp).
void check_few_tokens(int64_t count, Random& random);  // csr/rows, bitmask (test_few_tokens.cpp)
void check_block(int64_t count, Random& random);
void check_block_tiles(Random& random);
void check_mma_fragments();
void check_bitmask_warps(Random& random);  // those of bitmask (test_bitmask_warps.cpp)
void check_csr_warps(Random& random);      // those of csr (test_csr_warps.cpp)
void check_csr_layouts(Random& random);    // CUDA kernels on the CPU (test_cuda_csr.cpp)
void check_cuda_wgmma(Random& random);     // those of blocks and n:m (test_cuda_wgmma.cpp,
void check_cuda_tiles(Random& random);     // test_cuda_tiles.cpp)
// The same for n:m (test_nm.cpp, test_nm_tiles.cpp).
void check_nm(int64_t count, Random& random);
void check_nm_tiles(Random& random);

// Whole programs (test_program.cpp), and batches of them (test_innermost.cpp).
void check_programs(int64_t count, Random& random);
void check_innermost(int64_t count, Random& random);
