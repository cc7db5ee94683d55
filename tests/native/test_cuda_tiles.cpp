// The CUDA kernels of blocks and of 2:4, compiled for the CPU (cuda_on_cpu.h), against plain loops.
#include "cuda_problems.h"
#include "kernels/cuda/block_kernel.cuh"
#include "kernels/cuda/block_multiply.cuh"
#include "kernels/cuda/nm_kernel.cuh"
#include "kernels/cuda/nm_multiply.cuh"

// What device code declares as extern __shared__: of one thread block at a time.
namespace sparseprune::block {
alignas(128) char shared[1 << 18];
}  // namespace sparseprune::block
namespace sparseprune::nm {
alignas(128) char shared[1 << 18];
}  // namespace sparseprune::nm

namespace {

using namespace sparseprune;
using cuda_on_cpu::Arrival;

// Where x is whole, aligned chunks, as the launcher finds.
template <typename T>
bool in_chunks(const T* x) {
  return reinterpret_cast<uintptr_t>(x) % cuda::kChunkBytes == 0;
}

template <typename T>
cuda::ImageInput<T> image_input(const T* x, const Images& in) {
  const auto whole = [](int64_t elements) { return elements % cuda::kChunk<T> == 0; };
  const bool neighbours = in.strides.channel == 1 && in.taps_first;
  const bool vector = neighbours && in_chunks(x) && whole(in.channels()) &&
                      whole(in.strides.image) && whole(in.strides.row) && whole(in.strides.column);
  const int64_t taps = in.taps_first ? in.s.kernel_h * in.s.kernel_w : 1;
  return {x,
          in.strides,
          in.s,
          in.out_h(),
          in.out_w(),
          in.pixels(),
          static_cast<int>(in.cols()),
          static_cast<int>(taps),
          static_cast<int>(in.channels()),
          vector};
}

// Weights between guard pages, thread blocks one after the other.
template <typename T, typename Tile>
struct BlockLayer {
  Dense w;
  Packed packed;
  Arrival arrival;

  BlockLayer(Random& random, int64_t rows, int64_t cols, Arrival arrival)
      : w(blocky_numbers(random, rows, cols, Tile::kSide, .5)),
        packed(pack_block(w, Tile::kSide, Tile::kSide)),
        arrival(arrival) {}

  template <typename Input, typename Output>
  void run(const Input& in, const Output& out, const cuda::Finish<T>& finish, int groups) const {
    const Against against = page_of(arrival);
    // values begin aligned, as the op demands
    const Guarded<T> values(narrowed<T>(packed.values), Against::low_page);
    const Guarded<int32_t> columns(packed.block_columns, against), starts(packed.starts, against);
    const Block<T> view{values.read_only(), columns.read_only(), starts.read_only(), w.rows, w.cols,
                        Tile::kSide,        Tile::kSide};
    const int64_t token_tiles = (out.tokens + Tile::kTokens - 1) / Tile::kTokens;
    using Multiply = typename block::MultiplyOf<T, Tile>::Type;
    cuda_on_cpu::launch(static_cast<unsigned>(view.block_rows() * Tile::kStrips * token_tiles),
                        block::kThreads, arrival, [&] {
                          block::block_kernel<T, Tile, Multiply>(view, in, out, finish,
                                                                 static_cast<int>(w.rows) / groups);
                        });
  }
};

template <typename T, typename Tile>
struct NmLayer {
  Dense w;
  Packed packed;
  Arrival arrival;

  NmLayer(Random& random, int64_t rows, int64_t cols, Arrival arrival)
      : w(thinned({rows, cols, whole_numbers(random, rows * cols)}, 2, 4)),
        packed(pack_nm(w, 2, 4)),
        arrival(arrival) {}

  template <typename Input, typename Output>
  void run(const Input& in, const Output& out, const cuda::Finish<T>& finish, int groups) const {
    const Guarded<T> values(narrowed<T>(packed.values), Against::low_page);
    const Guarded<uint8_t> places(packed.places, Against::low_page);
    const Nm<T> view{values.read_only(), places.read_only(), w.rows, w.cols, 2, 4};
    const int strips = nm::strips_of(Tile::kRows, static_cast<int>(w.rows), groups);
    const int token_tiles = (out.tokens + Tile::kTokens - 1) / Tile::kTokens;
    using Multiply = typename nm::MultiplyOf<T, Tile>::Type;
    cuda_on_cpu::launch(static_cast<unsigned>(strips * token_tiles), Tile::kThreads, arrival,
                        [&] { nm::nm_kernel<T, Tile, Multiply>(view, in, out, finish, groups); });
  }
};

template <typename T, typename Layer>
void check_linear(Random& random, int64_t rows, int64_t cols, int tokens, Arrival arrival,
                  const char* name) {
  std::snprintf(running, sizeof running, "%s of %zu bytes, linear %dx%d, %d, arrival %d", name,
                sizeof(T), static_cast<int>(rows), static_cast<int>(cols), tokens,
                static_cast<int>(arrival));
  const Layer layer(random, rows, cols, arrival);
  std::vector<T> y(static_cast<size_t>(tokens * rows));
  const cuda::TokenOutput<T> out{y.data(), tokens, static_cast<int>(rows)};
  check_outputs(random, layer.w, linear_reads(random, cols, tokens), out, y, tokens % 2 == 1,
                page_of(arrival), [&](const T* x, const cuda::Finish<T>& finish) {
                  const bool vector = cols % cuda::kChunk<T> == 0 && in_chunks(x);
                  const cuda::TokenInput<T> in{x, tokens, static_cast<int>(cols), vector};
                  layer.run(in, out, finish, 1);
                });
}

template <typename T, typename Layer>
void check_conv2d(Random& random, const Images& in, Arrival arrival, const char* name) {
  std::snprintf(running, sizeof running, "%s of %zu bytes, conv2d, taps first %d, arrival %d", name,
                sizeof(T), in.taps_first, static_cast<int>(arrival));
  const Layer layer(random, in.s.rows, in.cols(), arrival);
  std::vector<T> y(static_cast<size_t>(in.pixels() * in.rows()));
  const cuda::ImageOutput<T> out{
      y.data(), in.lying(in.strides.channel == 1), in.out_h(), in.out_w(), in.pixels(), in.rows()};
  check_outputs(random, layer.w, image_reads(random, in), out, y, true, page_of(arrival),
                [&](const T* x, const cuda::Finish<T>& finish) {
                  layer.run(image_input(x, in), out, finish, static_cast<int>(in.s.groups));
                });
}

template <template <typename, typename> typename Layer, typename Tile>
void check_tile(Random& random, const char* name) {
  using Half = __half;
  using Brain = __nv_bfloat16;
  const int tokens = Tile::kTokens, rows = Tile::kRows;
  const Conv2dShape near{2, 24, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, rows + 3};
  const Conv2dShape far{1, 48, 9, 6, 2, 3, 2, 1, 0, 2, 1, 2, 2, 128};
  const Arrival now = Arrival::at_once, late = Arrival::when_waited_for;
  check_linear<Half, Layer<Half, Tile>>(random, rows + 3, 712, tokens + 1, late, name);
  check_linear<Brain, Layer<Brain, Tile>>(random, rows, 203, tokens / 2, now, name);
  check_linear<float, Layer<float, Tile>>(random, rows - 1, 328, 9, late, name);
  check_conv2d<Half, Layer<Half, Tile>>(random, channels_last(near), late, name);
  check_conv2d<Brain, Layer<Brain, Tile>>(random, channels_last(far, 8), now, name);
  check_conv2d<Half, Layer<Half, Tile>>(random, channels_first(near, false), now, name);
}

}  // namespace

void check_cuda_tiles(Random& random) {
  check_tile<BlockLayer, block::Tiles<16>::Many>(random, "blocks of 16, many tokens,");
  check_tile<BlockLayer, block::Tiles<16>::Few>(random, "blocks of 16, few tokens,");
  check_tile<BlockLayer, block::Tiles<32>::Many>(random, "blocks of 32, many tokens,");
  check_tile<BlockLayer, block::Tiles<32>::Few>(random, "blocks of 32, few tokens,");
  check_tile<BlockLayer, block::Tiles<64>::Many>(random, "blocks of 64, many tokens,");
  check_tile<BlockLayer, block::Tiles<64>::Few>(random, "blocks of 64, few tokens,");
  check_tile<NmLayer, nm::Narrow>(random, "2:4, narrow,");
  check_tile<NmLayer, nm::Small>(random, "2:4, small,");
  check_tile<NmLayer, nm::Medium>(random, "2:4, medium,");
  check_tile<NmLayer, nm::Large>(random, "2:4, large,");
}
