// Kernels over planes: nanoseconds and cycles for 16 outputs, one thread, best of many, data in L1
// or L2, beside the cycles that the load and store ports need at least with AVX-512.
//   planes > benchmarks/results/planes-<cpu>.csv
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu.h"
#include "kernels/cpu/table.h"

using namespace sparseprune;

namespace {

template <typename F>
double best_ns(const F& run) {
  double best = 1e30;
  for (int i = 0; i < 400; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < 16; ++j) run();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count() * 1e9 / 16);
  }
  return best;
}

// A chain of additions takes a cycle each.
double cycles_per_ns() {
  constexpr int kSteps = 20000;
  const double ns = best_ns([] {
    uint64_t v = 1;
    for (int i = 0; i < kSteps; ++i) asm volatile("" : "+r"(v += 3));
  });
  return kSteps / ns;
}

constexpr int64_t kFloats = 1 << 18;

// `shift` lines behind a page: a load waits for an older store to the same place of another page.
template <typename T>
T* aligned(int64_t shift) {
  const size_t bytes = kFloats * sizeof(T) + 4096;
  T* p = static_cast<T*>(std::aligned_alloc(4096, bytes)) + shift * 16;
  for (int64_t i = 0; i < kFloats; ++i) p[i] = static_cast<T>(i % 61) / 10 - 3;
  return p;
}

float *const x = aligned<float>(0), *const y = aligned<float>(24), *const more = aligned<float>(44);
int32_t* const live = aligned<int32_t>(12);
double frequency;

// bound: cycles for 16 outputs. A load that crosses a cache line counts as two halves of a cycle,
// one that does not as one half, a store as one cycle.
template <typename F>
void time(const char* kernel, const char* shape, double outputs, double bound, const F& run) {
  const double ns = best_ns(run) / (outputs / 16);
  std::printf("\"%s\",%s,%s,%s,%.2f,%.1f,%.1f\n", cpu_name().c_str(), isa_name(current_isa()),
              kernel, shape, ns, ns * frequency, bound);
}

std::vector<int32_t> window(int64_t side, int64_t row) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < side; ++i)
    for (int64_t j = 0; j < side; ++j) offsets.push_back(static_cast<int32_t>(i * row + j));
  return offsets;
}

const Activation kRelu6{Activation::kClamp, {0, 6}};

void time_finish(const PlaneKernels& k) {
  const auto run = [&](const Activation& a, const float* residual) {
    return [&k, a, residual] { k.finish(x, 64, residual, live, 64, 32, a, y, 64); };
  };
  time("finish clamp", "64x32", 64 * 32, 1, run(kRelu6, nullptr));
  time("finish clamp residual", "64x32", 64 * 32, 1.5, run(kRelu6, more));
  const std::pair<Activation::Kind, const char*> kinds[] = {
      {Activation::kLeaky, "leaky"},
      {Activation::kElu, "elu"},
      {Activation::kSilu, "silu"},
      {Activation::kGelu, "gelu"},
      {Activation::kGeluTanh, "gelu_tanh"},
      {Activation::kHardswish, "hardswish"},
      {Activation::kHardsigmoid, "hardsigmoid"},
      {Activation::kSigmoid, "sigmoid"},
      {Activation::kTanh, "tanh"},
      {Activation::kMish, "mish"}};
  for (const auto& [kind, name] : kinds)
    time((std::string("finish ") + name).c_str(), "64x32", 64 * 32, 1,
         run({kind, {.1f, 0}}, nullptr));
  time("scale clamp", "816", 816, 1, [&] { k.scale(x, .5f, live, 816, kRelu6, y); });
}

// An image whose rows are padded by one column, as programs lay it.
Planes image(int64_t size) {
  Planes p;
  p.height = p.width = size, p.row = size + 1, p.slice = p.row * size;
  p.lead = (p.row + 1 + 15) / 16 * 16, p.plane = 2 * p.lead + p.lanes();
  return p;
}

void time_depthwise(const PlaneKernels& k) {
  for (const int64_t side : {3, 5})
    for (const int64_t stride : {1, 2})
      for (const int64_t size : {112, 56, 28, 14, 7}) {
        const int64_t row = stride * size + 1, taps = side * side;
        const std::vector<int32_t> at = window(side, row);
        DepthwiseWindow w{at.data(), taps, stride, stride * row, 0, image(size), live};
        const int64_t channels = size > 14 ? 1 : 16;  // of one call; about as much data
        const DepthwisePlanes planes{
            channels, x, row * (stride * size + 1), more, more, nullptr, 0, y + w.to.lead};
        // Rows of x that are loaded once; of stride 2 for one row and a half of outputs.
        const double loads = static_cast<double>(side) * (stride == 1 ? 1 : 2 * 4. / 3);
        const double products = static_cast<double>(taps) / 2;
        const std::string name =
            "depthwise " + std::to_string(taps) + " s" + std::to_string(stride);
        const std::string shape = std::to_string(size) + "x" + std::to_string(size);
        time(name.c_str(), shape.c_str(), static_cast<double>(channels * size * size),
             std::max(loads, products) + 1, [&] { k.depthwise(w, planes, kRelu6); });
      }
}

void time_split(const PlaneKernels& k) {
  for (const int64_t size : {56, 28, 14})
    for (const int64_t side : {1, 3}) {
      SplitRows s{nullptr, size, 2, side == 1 ? 1 : 2, nullptr, image(size / 2 + side / 2)};
      const std::vector<int64_t> shift{side == 1 ? 0 : -1, 0};
      std::vector<int32_t> rows;
      for (int64_t r = 0; r < s.to.height; ++r)
        rows.push_back(static_cast<int32_t>(std::min(2 * r, size - 1) * (size + 1)));
      s.rows = rows.data(), s.shift = shift.data();
      const std::string shape = std::to_string(size) + "x" + std::to_string(size);
      const auto outputs = static_cast<double>(s.phases * s.to.height * s.to.width);
      time(side == 1 ? "split in one phase" : "split in two phases", shape.c_str(), outputs,
           side == 1 ? 3 : 2, [&] { k.split(x, s, y + s.to.lead); });
    }
}

void time_pool(const PlaneKernels& k) {
  for (const bool average : {false, true})
    for (const int64_t stride : {1, 2})
      for (const int64_t size : {112, 56, 28}) {
        Planes from, to;
        from.height = from.width = size, from.row = size + 1;
        to = image(size / stride);
        const PoolWindow w{{1, 3, 3}, {1, stride, stride},    {0, 1, 1}, {1, 1, 1}, average,
                           true,      {1, size + 2, size + 2}};
        const std::string name =
            (average ? "pool average s" : "pool max s") + std::to_string(stride);
        const std::string shape = std::to_string(size) + "x" + std::to_string(size);
        // rows: three loads and a store for a vector of x; columns: three loads, or four for pairs
        const double bound = stride == 1 ? 3. + 2.5 : 2 * 3. + 3.5;
        time(name.c_str(), shape.c_str(), static_cast<double>(to.height * to.width), bound,
             [&] { k.pool(x, from, w, to, y + to.lead, more); });
      }
}

void time_copies(const PlaneKernels& k) {
  std::vector<int32_t> at;
  for (int32_t c = 0; c < 128; ++c) at.push_back(c / 9 * 841 % 6000 + c % 9 / 3 * 29 + c % 3);
  for (const int64_t lanes : {64, 32, 16})
    for (const int64_t cols : {64, 128}) {
      const std::string shape = std::to_string(lanes) + "x" + std::to_string(cols);
      time("pack_streams", shape.c_str(), static_cast<double>(lanes * cols), 1,
           [&] { k.pack_streams(x, at.data(), cols, {}, y, lanes); });
    }
  const Planes one = image(1);
  for (const int64_t size : {56, 7}) {
    const int64_t lanes = image(size).lanes(), planes = size == 7 ? 32 : 1;
    const std::string shape =
        std::to_string(planes) + " of " + std::to_string(size) + "x" + std::to_string(size);
    time("mean", shape.c_str(), static_cast<double>(planes * lanes), .5,
         [&] { k.mean(x, lanes, lanes, 49, planes, one, y + one.lead); });
  }
}

}  // namespace

int main() {
  std::fill_n(live, kFloats, -1);
  frequency = cycles_per_ns();
  std::fprintf(stderr, "%.2f GHz\n", frequency);
  std::puts("cpu,isa,kernel,shape,ns,cycles,bound");
  for (const char* isa : {"avx512", "avx2", "scalar"}) {
    try {
      force_isa(isa);
    } catch (const std::exception&) {
      continue;  // not on this CPU
    }
    const PlaneKernels& k = plane_kernels();
    time_finish(k);
    time_depthwise(k);
    time_split(k);
    time_pool(k);
    time_copies(k);
  }
}
