#include "kernels/cuda/block_launch.cuh"

namespace sparseprune {
namespace block {
namespace {

// Whether the columns of every chunk are neighbours in x, aligned.
template <typename T>
bool in_chunks(const Block<T>& w, const T* x, const ImageStrides& strides, const Conv2dShape& s) {
  const auto whole = [](int64_t elements) { return elements % kChunk<T> == 0; };
  return (w.taps > 1 || s.kernel_h * s.kernel_w == 1) && strides.channel == 1 && aligned(x) &&
         whole(s.channels / s.groups) && whole(strides.image) && whole(strides.row) &&
         whole(strides.column);
}

template <typename T>
int conv2d(const Block<T>& w, const T* x, const ImageStrides& x_strides, const Conv2dShape& s, T* y,
           const ImageStrides& y_strides, const Finish<T>& finish, void* stream) {
  const int out_h = static_cast<int>(s.out_height()), out_w = static_cast<int>(s.out_width());
  const int pixels = static_cast<int>(s.batch) * out_h * out_w;
  const int cols = static_cast<int>(w.cols), taps = static_cast<int>(w.taps);
  const int channels = static_cast<int>(s.channels / s.groups);
  const bool vector = in_chunks(w, x, x_strides, s);
  const ImageInput<T> in{x, x_strides, s, out_h, out_w, pixels, cols, taps, channels, vector};
  const ImageOutput<T> out{y, y_strides, out_h, out_w, pixels, static_cast<int>(w.rows)};
  return with_side(w.r, [&](auto tiles) {
    return launch<T, typename decltype(tiles)::Many>(w, in, out, finish, w.rows / s.groups, stream);
  });
}

}  // namespace
}  // namespace block

int block_conv2d_cuda(const Block<void>& w, Element element, const void* x,
                      const ImageStrides& x_strides, const Conv2dShape& shape, const void* bias,
                      void* y, const ImageStrides& y_strides, void* stream, Clamp clamp) {
  return block::with_type(element, [&](auto type) {
    using T = decltype(type);
    return block::conv2d<T>(block::typed<T>(w), static_cast<const T*>(x), x_strides, shape,
                            static_cast<T*>(y), y_strides, {static_cast<const T*>(bias), clamp},
                            stream);
  });
}

}  // namespace sparseprune
