// The CUDA kernel of 64 x 64 blocks for wgmma, compiled for the CPU (cuda_on_cpu.h), against plain
// loops, and what descriptors of wgmma say.
#include "cuda_problems.h"
#include "kernels/cuda/block_wgmma_kernel.cuh"

namespace {

using namespace sparseprune;
using namespace sparseprune::wgmma;
using cuda_on_cpu::Arrival;

struct Launch {
  Arrival arrival;
  unsigned thread_blocks;
};

template <typename T, typename Tile, typename Output, typename Make>
void check(Random& random, const Dense& w, const Reads& reads, const Output& output,
           std::vector<T>& y, bool has_bias, const Launch& launch, const Make& window) {
  const Packed packed = pack_block(w, kSide, kSide);
  const int64_t stored = static_cast<int64_t>(packed.block_columns.size());
  const Against against = page_of(launch.arrival);
  check_outputs(random, w, reads, output, y, has_bias, against,
                [&](const T* x, const cuda::Finish<T>& finish) {
                  const Guarded<T> values(narrowed<T>(packed.values), against);
                  const Guarded<int32_t> columns(packed.block_columns, against);
                  const Guarded<int32_t> starts(packed.starts, against);
                  const TensorMap map =
                      cuda::row_window(values.read_only(), stored * kSide, kSide, kSide, kSide);
                  const int block_rows = static_cast<int>((w.rows + kSide - 1) / kSide);
                  const Blocks blocks{columns.read_only(), starts.read_only(), block_rows,
                                      (reads.tokens + Tile::kTokens - 1) / Tile::kTokens};
                  const auto of_x = window(x);
                  using Window = std::remove_const_t<decltype(of_x)>;
                  cuda_on_cpu::launch(launch.thread_blocks, kThreads, launch.arrival, [&] {
                    block_wgmma_kernel<T, Tile, Window, Output>(map, of_x, blocks, output, finish);
                  });
                });
}

template <typename T, typename Tile>
void check_linear(Random& random, int64_t rows, int64_t cols, int tokens, double kept,
                  const Launch& launch, bool bias = true) {
  std::snprintf(running, sizeof running, "wgmma, %d tokens of a tile, linear %dx%d, %d, arrival %d",
                Tile::kTokens, static_cast<int>(rows), static_cast<int>(cols), tokens,
                static_cast<int>(launch.arrival));
  const Dense w = blocky_numbers(random, rows, cols, kSide, kept);
  std::vector<T> y(static_cast<size_t>(tokens * rows));
  const cuda::TokenOutput<T> output{y.data(), tokens, static_cast<int>(rows)};
  check<T, Tile>(random, w, linear_reads(random, cols, tokens), output, y, bias, launch,
                 [&](const T* x) {
                   return TokenWindow{cuda::row_window(x, tokens, cols, kSide, Tile::kTokens)};
                 });
}

template <typename T, typename Tile>
void check_conv2d(Random& random, const Images& in, double kept, const Launch& launch,
                  bool last_in_y = true) {
  const Conv2dShape& s = in.s;
  std::snprintf(running, sizeof running,
                "wgmma, %d pixels of a tile, conv2d %dx%d of %dx%d, stride %d, arrival %d",
                Tile::kTokens, static_cast<int>(s.kernel_h), static_cast<int>(s.kernel_w),
                static_cast<int>(s.height), static_cast<int>(s.width), static_cast<int>(s.stride_w),
                static_cast<int>(launch.arrival));
  const Dense w = blocky_numbers(random, s.rows, in.cols(), kSide, kept);
  std::vector<T> y(static_cast<size_t>(in.pixels() * in.rows()));
  const cuda::ImageOutput<T> output{y.data(),   in.lying(last_in_y), in.out_h(),
                                    in.out_w(), in.pixels(),         in.rows()};
  check<T, Tile>(random, w, image_reads(random, in), output, y, true, launch, [&](const T* x) {
    const TensorMap map = cuda::pixel_window(x, in.strides, s, kSide, Tile::kTokens);
    expect(cuda::copyable(map) || reinterpret_cast<uintptr_t>(x) % 16, "copyable");
    return pixel_reads(map, s);
  });
}

// "Matrix Descriptor Format": where it begins in units of 16 bytes, the way to the next eight rows,
// the swizzle of 128 bytes as 1 in the uppermost bits of sm_90's. "Matrix fragments for
// wgmma.mma_async.m64nNk16": the sums.
void check_places() {
  std::snprintf(running, sizeof running, "descriptors and sums of wgmma");
  const uint64_t d = descriptor(0x2a400);
  expect((d & 0x3fff) == 0x2a400 >> 4 && (d >> 14 & 3) == 0, "begin");
  expect((d >> 32 & 0x3fff) == 1024 >> 4, "stride");
  expect((d >> 46 & 0xffff) == 0 && d >> 62 == 1, "swizzle");
  expect((further(d, 16) & 0x3fff) == (0x2a400 + 32) >> 4, "16 columns further");
  for (int thread = 0; thread < kWarpgroup; ++thread)
    for (int i = 0; i < kSums; ++i) {
      const mma::Place p{16 * (thread >> 5) + 8 * (i >> 1 & 1) + (thread >> 2 & 7),
                         8 * (i >> 2) + 2 * (thread & 3) + (i & 1)};
      expect(sum_place(thread, i).row == p.row && sum_place(thread, i).col == p.col, "sums");
    }
}

// What the copy unit does not take.
void check_refusals() {
  std::snprintf(running, sizeof running, "windows that cannot be copied");
  alignas(16) static uint16_t memory[64];
  const auto of = [&](int64_t rows, int64_t cols) {
    return cuda::copyable(cuda::row_window(memory, rows, cols, kSide, kSide));
  };
  expect(of(3, 72) && !of(3, 60) && !of(0, 64) && !of(int64_t{1} << 33, 64), "rows");
  expect(!cuda::copyable(cuda::row_window(memory + 1, 3, 64, kSide, kSide)), "alignment");
  const Conv2dShape usual{2, 64, 9, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 64};
  const auto images = [&](auto change) {
    Conv2dShape s = usual;
    change(s);
    return cuda::copyable(cuda::pixel_window(memory, channels_last(s).strides, s, kSide, 128));
  };
  expect(images([](Conv2dShape&) {}), "usual");
  expect(!images([](Conv2dShape& s) { s.stride_w = 9; }), "steps");
  expect(!images([](Conv2dShape& s) { s.padding_h = 129, s.height = 999; }), "far corners");
  expect(!images([](Conv2dShape& s) { s.kernel_w = 257, s.padding_w = 128; }), "far taps");
  const Images planes = channels_first(usual, true);
  expect(!cuda::copyable(cuda::pixel_window(memory, planes.strides, usual, kSide, 128)), "planes");
}

}  // namespace

void check_cuda_wgmma(Random& random) {
  using Half = __half;
  using Brain = __nv_bfloat16;
  check_places();
  check_refusals();
  for (const Arrival arrival : {Arrival::at_once, Arrival::when_waited_for}) {
    const Launch one{arrival, 1}, two{arrival, 2};
    check_linear<Half, Tile<128>>(random, 128, 512, 128, 1., one);
    check_linear<Brain, Tile<128>>(random, 200, 776, 200, .5, two);
    check_linear<Half, Tile<256>>(random, 133, 1024, 300, .6, one, false);
    check_linear<Brain, Tile<256>>(random, 64, 1088, 65, 1., one);
    check_conv2d<Half, Tile<128>>(
        random, channels_last({2, 64, 7, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 130}), .7, two);
    check_conv2d<Brain, Tile<256>>(
        random, channels_last({3, 128, 9, 6, 2, 3, 2, 1, 0, 2, 1, 2, 2, 128}, 8), .8, one);
    check_conv2d<Brain, Tile<128>>(
        random, channels_last({3, 64, 8, 5, 1, 1, 2, 3, 0, 0, 1, 1, 1, 65}), 1., one, false);
  }
  check_linear<Half, Tile<128>>(random, 190, 64, 70, .3, {Arrival::at_once, 2});
  check_linear<Half, Tile<128>>(random, 70, 128, 70, 0., {Arrival::at_once, 1});
}
