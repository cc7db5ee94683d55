#include "kernels/cuda/block_launch.cuh"

namespace sparseprune {
namespace block {
namespace {

template <typename T>
int conv2d(const Block<T>& w, const T* x, const ImageStrides& x_strides, const Conv2dShape& s, T* y,
           const ImageStrides& y_strides, const Finish<T>& finish, void* stream) {
  const ImageInput<T> in = image_input(x, x_strides, s, w.cols, w.taps);
  const ImageOutput<T> out = image_output(y, y_strides, s);
  return with_side(w.r, [&](auto tiles) {
    return launch<T, typename decltype(tiles)::Many>(w, in, out, finish, w.rows / s.groups, stream);
  });
}

}  // namespace
}  // namespace block

int block_conv2d_cuda(const Block<void>& w, Element element, const void* x,
                      const ImageStrides& x_strides, const Conv2dShape& shape, const void* bias,
                      void* y, const ImageStrides& y_strides, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) {
    using T = decltype(type);
    return block::conv2d<T>(block::typed<T>(w), static_cast<const T*>(x), x_strides, shape,
                            static_cast<T*>(y), y_strides, {static_cast<const T*>(bias), clamp},
                            stream);
  });
}

}  // namespace sparseprune
