#include "kernels/cuda/block_wgmma.cuh"
#include "kernels/cuda/block_wgmma_kernel.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.cuh"

namespace sparseprune {
namespace wgmma {
namespace {

// Fewer tokens are fewer than a tile: the kernels of block.cuh have smaller ones.
constexpr int64_t kFewTokens = 64;

struct Layer {
  const Block<void>& w;
  int64_t blocks;
  void* stream;
  int processors = 0;
};

// Thread blocks stay, one on each multiprocessor, until all tiles are done.
template <typename T, typename Tile, typename Window, typename Output>
int launch(const Layer& layer, const TensorWindow& x, Window window, const Output& out,
           const Finish<T>& finish) {
  const int64_t token_tiles = (int64_t{out.tokens} + Tile::kTokens - 1) / Tile::kTokens;
  const int64_t block_rows = layer.w.block_rows(), tiles = block_rows * token_tiles;
  if (tiles > INT32_MAX - layer.processors) return cudaErrorInvalidConfiguration;
  TensorMap values;
  const TensorWindow w = row_window(layer.w.values, layer.blocks * kSide, kSide, kSide, kSide);
  if (const int error = make_map<T>(values, w)) return error;
  if (const int error = make_map<T>(window.map, x)) return error;
  const Blocks blocks{layer.w.columns, layer.w.starts, static_cast<int>(block_rows),
                      static_cast<int>(token_tiles)};
  return start(block_wgmma_kernel<T, Tile, Window, Output>,
               std::min<int64_t>(tiles, layer.processors), kThreads, Tile::kBytes, layer.stream,
               values, window, blocks, out, finish);
}

// Calls run(layer, Tile) for the widest tile with which every multiprocessor has work for both
// warpgroups.
template <typename Run>
int with_tile(Layer layer, int64_t tokens, const Run& run) {
  Device device;
  if (const int error = ask(device)) return error;
  layer.processors = device.processors;
  const int64_t wide = layer.w.block_rows() * ((tokens + 255) / 256);
  return wide >= kTakers * device.processors ? run(layer, Tile<256>{}) : run(layer, Tile<128>{});
}

template <typename T>
int linear(const Layer& of, const T* x, int64_t tokens, T* y, const Finish<T>& finish) {
  return with_tile(of, tokens, [&](const Layer& layer, auto tile) {
    const TensorWindow window = row_window(x, tokens, layer.w.cols, kSide, decltype(tile)::kTokens);
    return launch<T, decltype(tile)>(layer, window, TokenWindow{},
                                     token_output(y, tokens, layer.w.rows), finish);
  });
}

template <typename T>
int conv2d(const Layer& of, const T* x, const ImageStrides& x_strides, const Conv2dShape& s, T* y,
           const ImageStrides& y_strides, const Finish<T>& finish) {
  const ImageOutput<T> out = image_output(y, y_strides, s);
  return with_tile(of, out.tokens, [&](const Layer& layer, auto tile) {
    const TensorWindow window = pixel_window(x, x_strides, s, kSide, decltype(tile)::kTokens);
    return launch<T, decltype(tile)>(layer, window, pixel_reads({}, s), out, finish);
  });
}

// Calls run(T{}) for the C++ type of the elements, which is not float.
template <typename Run>
int with_half(Element element, const Run& run) {
  return element == Element::float16 ? run(__half{}) : run(__nv_bfloat16{});
}

// Whether the kernel multiplies such weights, and there are enough tokens for its tiles.
bool serves(const Block<void>& w, int64_t blocks, Element element, int64_t tokens) {
  return element != Element::float32 && w.r == kSide && w.c == kSide && blocks > 0 &&
         tokens > kFewTokens;
}

}  // namespace
}  // namespace wgmma

int block_linear_wgmma(const Block<void>& w, int64_t blocks, Element element, const void* x,
                       int64_t tokens, const void* bias, void* y, void* stream, Clamp clamp) {
  using namespace wgmma;
  if (!serves(w, blocks, element, tokens) || !copyable(row_window(x, tokens, w.cols, kSide, 1)))
    return block_linear_cuda(w, element, x, tokens, bias, y, stream, clamp);
  return with_half(element, [&](auto type) {
    using T = decltype(type);
    return linear<T>({w, blocks, stream}, static_cast<const T*>(x), tokens, static_cast<T*>(y),
                     {static_cast<const T*>(bias), clamp});
  });
}

int block_conv2d_wgmma(const Block<void>& w, int64_t blocks, Element element, const void* x,
                       const ImageStrides& x_strides, const Conv2dShape& s, const void* bias,
                       void* y, const ImageStrides& y_strides, void* stream, Clamp clamp) {
  using namespace wgmma;
  const int64_t pixels = s.batch * s.out_height() * s.out_width();
  const bool whole =
      s.channels / s.groups % kSide == 0 && (w.taps > 1 || s.kernel_h * s.kernel_w == 1);
  if (!whole || !serves(w, blocks, element, pixels) ||
      !copyable(pixel_window(x, x_strides, s, kSide, 1)))
    return block_conv2d_cuda(w, element, x, x_strides, s, bias, y, y_strides, stream, clamp);
  return with_half(element, [&](auto type) {
    using T = decltype(type);
    return conv2d<T>({w, blocks, stream}, static_cast<const T*>(x), x_strides, s,
                     static_cast<T*>(y), y_strides, {static_cast<const T*>(bias), clamp});
  });
}

}  // namespace sparseprune
