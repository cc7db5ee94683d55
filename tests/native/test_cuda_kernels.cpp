// CUDA kernels themselves, compiled for the CPU (cuda_on_cpu.h), against plain loops.
#include "cuda_problems.h"
#include "kernels/cuda/bitmask_forms.cuh"
#include "kernels/cuda/bitmask_kernel.cuh"
#include "kernels/cuda/csr_few.cuh"
#include "kernels/cuda/csr_many.cuh"

// What device code declares as extern __shared__.
namespace sparseprune::csr {
alignas(16) char shared[1 << 18];
alignas(16) float slab[1 << 15];
}  // namespace sparseprune::csr

namespace {

using namespace sparseprune;
using cuda_on_cpu::Arrival;

// Whole numbers of few bits, so that sums are exact in any order and 16-bit elements hold them.
struct Problem {
  int64_t rows, cols;
  int tokens;
  double density;
  bool bias = true;
};

template <typename T>
struct Layer {
  Problem of;
  Dense w;
  std::vector<T> x, bias;
  Clamp clamp{-400.f, 500.f};

  Layer(Random& random, const Problem& p) : of(p), w{p.rows, p.cols, {}} {
    const auto numbers = [&](int64_t count, int64_t least, int64_t most) {
      std::vector<float> v;
      for (int64_t i = 0; i < count; ++i)
        v.push_back(static_cast<float>(random.integer(least, most)));
      return v;
    };
    w.weights = numbers(p.rows * p.cols, 1, 9);
    for (float& v : w.weights)
      if (random.share() >= p.density) v = 0.f;
    x = narrowed<T>(numbers(p.tokens * p.cols, -3, 3));
    bias = narrowed<T>(numbers(p.rows, -9, 9));
    if (p.cols < 8) return;
    cuda::narrow(INFINITY, &x[2]);                // only rows with a weight there may see it
    w.weights[(p.rows - 1) * p.cols] = INFINITY;  // only its own row may see it
    for (int64_t t = 0; t < p.tokens; ++t) cuda::narrow(1.f, &x[t * p.cols]);
  }

  cuda::Finish<T> finish() const { return {of.bias ? bias.data() : nullptr, clamp}; }
  std::vector<T> output() const {
    return narrowed<T>(std::vector<float>(static_cast<size_t>(of.tokens * of.rows), 12345.f));
  }

  void compare(const std::vector<T>& y) const {
    for (int64_t t = 0; t < of.tokens; ++t)
      for (int64_t r = 0; r < of.rows; ++r) {
        float sum = of.bias ? cuda::widen(bias[r]) : 0.f;
        for (int64_t c = 0; c < of.cols; ++c)
          if (w.at(r, c) != 0.f) sum += w.at(r, c) * cuda::widen(x[t * of.cols + c]);
        T expected;
        cuda::narrow(cuda::limit(sum, clamp), &expected);
        const float got = cuda::widen(y[t * of.rows + r]);
        expect(got == cuda::widen(expected), "y[" + std::to_string(t) + ", " + std::to_string(r) +
                                                 "] = " + std::to_string(got) + ", not " +
                                                 std::to_string(cuda::widen(expected)));
      }
  }
};

void announce(const char* kernel, size_t size, const Problem& p, int tokens, Arrival arrival) {
  std::snprintf(running, sizeof running,
                "%s of %zu bytes for %d tokens: %dx%d, %d, %.2f, arrival %d", kernel, size, tokens,
                static_cast<int>(p.rows), static_cast<int>(p.cols), p.tokens, p.density,
                static_cast<int>(arrival));
}

struct Blocks {
  int warps, cluster = 1;
};

// Guarded on both sides: kernels may read no byte past the ends. All tokens, by the kernels that
// the launcher takes.
template <typename T>
void check_bitmask(Random& random, const Problem& p, const Blocks& blocks, Arrival arrival) {
  const Layer<T> layer(random, p);
  const Packed packed = pack_bitmask(layer.w);
  for (const Against against : {Against::low_page, Against::high_page}) {
    // values end at the page only if their bytes are a multiple of 16, for they begin aligned
    std::vector<T> padded = narrowed<T>(packed.values);
    const Guarded<T> values(padded, Against::low_page), x(layer.x, against);
    const Guarded<uint8_t> masks(packed.masks, against);
    const Guarded<int32_t> starts(packed.starts, against);
    const BitmaskOf<T> w{values.read_only(), masks.read_only(), starts.read_only(), p.rows, p.cols};
    const bool vector = p.cols % cuda::kChunk<T> == 0 &&
                        reinterpret_cast<uintptr_t>(x.data()) % cuda::kChunkBytes == 0;
    std::vector<T> y = layer.output();
    bitmask::for_all_tokens<T>(p.tokens, [&](auto form, int64_t first, int64_t now) {
      using Multiply = typename decltype(form)::type;
      announce("bitmask kernel", sizeof(T), p, Multiply::kMostTokens, arrival);
      const cuda::TokenInput<T> in{x.data() + first * p.cols, static_cast<int>(now),
                                   static_cast<int>(p.cols), vector};
      T* to = y.data() + first * p.rows;
      cuda_on_cpu::launch(
          static_cast<unsigned>(w.units() * blocks.cluster), blocks.warps * bitmask::kLanes,
          arrival, [&] { bitmask::bitmask_kernel<T, Multiply>(w, in, layer.finish(), to); },
          blocks.cluster);
      return 0;
    });
    layer.compare(y);
  }
}

template <typename T, int kTokens, bool kStaged>
void check_few(Random& random, const Problem& p) {
  announce(kStaged ? "csr kernel, x staged," : "csr kernel", sizeof(T), p, kTokens,
           Arrival::at_once);
  const Layer<T> layer(random, p);
  const Packed packed = pack_rows(layer.w);
  const Guarded<T> values(narrowed<T>(packed.values), Against::low_page);
  const Guarded<uint16_t> columns(packed.wide_columns, Against::low_page);
  const Guarded<int32_t> starts(packed.starts, Against::high_page);
  const Guarded<T> x(layer.x, Against::high_page);
  const CsrRowsOf<T> w{values.read_only(), columns.read_only(), starts.read_only(), p.rows, p.cols};
  std::vector<T> y = layer.output();
  cuda_on_cpu::launch(2, 2 * csr::kLanes, Arrival::at_once, [&] {
    csr::few_kernel<T, kTokens, kStaged>(w, x.data(), p.tokens, layer.finish(), y.data());
  });
  layer.compare(y);
}

template <typename T, int kEach>
void check_many(Random& random, const Problem& p) {
  announce("csr kernel, many tokens,", sizeof(T), p, csr::Tile<kEach>::kTokens, Arrival::at_once);
  const Layer<T> layer(random, p);
  const Packed packed = pack_rows(layer.w);
  const Guarded<T> values(narrowed<T>(packed.values), Against::high_page);
  const Guarded<uint16_t> columns(packed.wide_columns, Against::high_page);
  const Guarded<int32_t> starts(packed.starts, Against::high_page);
  const CsrRowsOf<T> w{values.read_only(), columns.read_only(), starts.read_only(), p.rows, p.cols};
  std::vector<T> y = layer.output();
  const int64_t tall = (p.rows + csr::kTileRows - 1) / csr::kTileRows;
  const int64_t wide = (p.tokens + csr::Tile<kEach>::kTokens - 1) / csr::Tile<kEach>::kTokens;
  for (const Against against : {Against::low_page, Against::high_page}) {
    const Guarded<T> x(layer.x, against);
    const bool vector =
        p.cols % csr::kPiece == 0 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0;
    cuda_on_cpu::launch(
        static_cast<unsigned>(tall * wide), csr::kManyThreads, Arrival::at_once, [&] {
          csr::many_kernel<T, kEach>(w, x.data(), p.tokens, vector, layer.finish(), y.data());
        });
    layer.compare(y);
  }
}

// The product of a warp against plain loops, by the words of the PTX ISA ("Matrix Fragments for
// mma.m16n8k16 with floating point type").
void check_product(Random& random) {
  std::snprintf(running, sizeof running, "mma.m16n8k16");
  float a[16][16], b[16][8];
  for (auto& row : a)
    for (float& v : row) v = static_cast<float>(random.integer(-9, 9));
  for (auto& row : b)
    for (float& v : row) v = static_cast<float>(random.integer(-9, 9));
  const auto two = [](float low, float high) {
    return uint32_t{upper_half(high)} << 16 | upper_half(low);
  };
  float c[16][8] = {};
  cuda_on_cpu::launch(1, 32, Arrival::at_once, [&] {
    const int group = static_cast<int>(threadIdx.x >> 2), in = static_cast<int>(threadIdx.x & 3);
    const uint32_t mine_a[4] = {two(a[group][2 * in], a[group][2 * in + 1]),
                                two(a[group + 8][2 * in], a[group + 8][2 * in + 1]),
                                two(a[group][2 * in + 8], a[group][2 * in + 9]),
                                two(a[group + 8][2 * in + 8], a[group + 8][2 * in + 9])};
    float sums[4] = {1.f, 1.f, 1.f, 1.f};
    multiply_add(sums, mine_a, two(b[2 * in][group], b[2 * in + 1][group]),
                 two(b[2 * in + 8][group], b[2 * in + 9][group]), __nv_bfloat16{});
    c[group][2 * in] = sums[0], c[group][2 * in + 1] = sums[1];
    c[group + 8][2 * in] = sums[2], c[group + 8][2 * in + 1] = sums[3];
  });
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < 8; ++col) {
      double sum = 1;
      for (int k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][col];
      expect(c[row][col] == sum, "c += a b");
    }
}

void check_all(Random& random) {
  check_product(random);
  for (const Arrival arrival : {Arrival::at_once, Arrival::when_waited_for}) {
    check_bitmask<float>(random, {130, 150, 1, .5}, {2}, arrival);
    check_bitmask<float>(random, {64, 40, 2, 1.}, {1}, arrival);
    check_bitmask<float>(random, {70, 97, 3, .9}, {2}, arrival);
    check_bitmask<float>(random, {10, 130, 15, .3}, {1, 2}, arrival);
    check_bitmask<__half>(random, {64, 200, 1, 1.}, {3}, arrival);
    check_bitmask<__nv_bfloat16>(random, {65, 100, 1, .1, false}, {1, 2}, arrival);
    check_bitmask<__half>(random, {130, 200, 8, .5}, {2}, arrival);
    check_bitmask<__nv_bfloat16>(random, {65, 97, 3, .1, false}, {1, 2}, arrival);
    check_bitmask<__nv_bfloat16>(random, {64, 136, 16, 1.}, {1}, arrival);
    check_bitmask<__half>(random, {3, 301, 11, .9}, {2}, arrival);
    check_bitmask<__half>(random, {70, 72, 29, .3}, {1}, arrival);
    check_bitmask<__nv_bfloat16>(random, {40, 128, 64, .1}, {1, 2}, arrival);
    check_bitmask<__half>(random, {66, 50, 41, .2, false}, {2}, arrival);
    check_bitmask<__half>(random, {20, 24, 66, .4}, {1}, arrival);
    check_bitmask<__nv_bfloat16>(random, {9, 33, 130, .6}, {1}, arrival);
  }
  check_bitmask<float>(random, {3, 0, 1, 1.}, {1}, Arrival::at_once);
  check_bitmask<__half>(random, {3, 0, 2, 1.}, {1}, Arrival::at_once);
  check_bitmask<__half>(random, {70, 7, 5, 0.}, {1}, Arrival::at_once);
  check_few<float, 1, true>(random, {9, 150, 1, .4});
  check_few<float, 1, false>(random, {9, 150, 1, .4});
  check_few<__half, 8, true>(random, {5, 301, 5, .7, false});
  check_few<__nv_bfloat16, 2, true>(random, {7, 77, 2, .1});
  check_few<float, 4, true>(random, {6, 0, 3, 1.});
  check_many<float, 1>(random, {67, 130, 33, .1});
  check_many<__half, 2>(random, {9, 256, 60, .2, false});
  check_many<float, 4>(random, {3, 140, 130, .3});
}

}  // namespace

int main() {
  Random random(1);
  check_all(random);
  check_cuda_wgmma(random);
  check_cuda_tiles(random);
  check_csr_layouts(random);
  std::printf("%d of %d checks failed\n", failures, checked);
  return failures != 0;
}
