// What the ports of a core allow: ns per 512-bit load or FMA, best of 9, everything in L1.
//   limits > benchmarks/results/limits-<cpu>.csv
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"

namespace {

constexpr int64_t kTurns = 100000, kLanes = 64, kColumns = 128;  // floats of a panel row; rows
alignas(4096) float panel[kLanes * kColumns];
alignas(64) float sums[kLanes * 4];
float weights[1024];
uint8_t columns[1024];

inline void use(__m512& v) { asm volatile("" : "+v"(v)); }
inline __m512 line(const float* p) { return _mm512_load_ps(p); }

template <typename F>
void print(const char* what, double operations, const F& run) {
  double best = 1e30;
  for (int i = 0; i < 9; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  std::printf("\"%s\",\"%s\",%.4f\n", cpu_name().c_str(), what, best / operations * 1e9);
}

// kRows rows of one column after another share its four vectors.
template <int kRows>
void shared(const char* what) {
  print(what, kTurns * 8. * kRows * 4, [] {
    __m512 sum[kRows][4] = {};
    for (int64_t turn = 0; turn < kTurns; ++turn) {
      const float* x = panel + (turn & 15) * 8 * kLanes;
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) {
        __m512 loaded[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) loaded[v] = line(x + c * kLanes + v * 16), use(loaded[v]);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          __m512 w = _mm512_set1_ps(weights[c * kRows + r]);
          use(w);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_fmadd_ps(w, loaded[v], sum[r][v]);
        }
      }
    }
    for (auto& row : sum)
      for (__m512& v : row) use(v);
  });
}

// Pairs of rows of `count` nonzeros in random columns, as csr/sorted goes through them.
void rows_apart(int count) {
  const std::string what =
      "fma, two rows of " + std::to_string(count) + " nonzeros in random columns, sums in memory";
  print(what.c_str(), kTurns / 16 * 8. * count, [=] {
    for (int64_t turn = 0; turn < kTurns / 16; ++turn) {
      __m512 a[4], b[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v] = line(sums + v * 16), b[v] = line(sums + 64 + v * 16);
      const int first = static_cast<int>(turn * 2 * count % (1024 - 2 * count));
      for (int i = first; i < first + count; ++i) {
        const float *x = panel + columns[i] * kLanes, *y = panel + columns[i + count] * kLanes;
        const __m512 w = _mm512_set1_ps(weights[i]), u = _mm512_set1_ps(weights[i + count]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) a[v] = _mm512_fmadd_ps(w, line(x + v * 16), a[v]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) b[v] = _mm512_fmadd_ps(u, line(y + v * 16), b[v]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        _mm512_store_ps(sums + v * 16, a[v]), _mm512_store_ps(sums + 64 + v * 16, b[v]);
    }
  });
}

void loads(const char* what, int64_t offset) {
  print(what, kTurns * 16., [=] {
    for (int64_t turn = 0; turn < kTurns; ++turn) {
      const float* x = panel + (turn & 7) * 256 + offset;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        __m512 v = _mm512_loadu_ps(x + i * 16);
        use(v);
      }
    }
  });
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx512f")) return std::fputs("limits: needs AVX-512\n", stderr), 1;
  std::mt19937 random(1);
  // Written, so that the compiler must read them and they have pages of their own: what was never
  // written is one page of zeros, which caches that tell lines by address do not hold.
  std::fill_n(panel, kLanes * kColumns, 1e-3f);
  for (float& w : weights) w = static_cast<float>(random()) * 1e-12f;
  for (uint8_t& c : columns) c = static_cast<uint8_t>(random() % kColumns);
  std::puts("cpu,what,ns");
  loads("load, aligned", 0);
  loads("load, across two lines", 1);
  print("fma, registers only", kTurns * 16., [] {
    __m512 sum[16], w = _mm512_set1_ps(1e-9f);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
    for (int64_t turn = 0; turn < kTurns; ++turn) {
      use(w);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) sum[i] = _mm512_fmadd_ps(w, w, sum[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) use(sum[i]);
  });
  shared<1>("fma, each column loaded for one row");
  shared<2>("fma, each column loaded for two rows");
  shared<3>("fma, each column loaded for three rows");
  shared<4>("fma, each column loaded for four rows");
  for (const int count : {8, 16, 32, 88}) rows_apart(count);
}
