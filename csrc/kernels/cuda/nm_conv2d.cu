#include "kernels/cuda/nm_launch.cuh"

namespace sparseprune {
namespace nm {
namespace {

template <typename T>
int conv2d(const Nm<T>& w, const T* x, const ImageStrides& x_strides, const Conv2dShape& s, T* y,
           const ImageStrides& y_strides, const Finish<T>& finish, void* stream) {
  const ImageInput<T> in = image_input(x, x_strides, s, w.cols, w.taps);
  const ImageOutput<T> out = image_output(y, y_strides, s);
  const int groups = static_cast<int>(s.groups);
  const int64_t each = w.rows / groups;
  if (out.tokens <= Small::kTokens || each <= Small::kRows)
    return launch<Small>(w, in, out, finish, groups, stream);
  if constexpr (sizeof(T) == 2)  // float is bound by FMA, not by what L2 delivers
    if (out.tokens * w.rows >= kLargeOutputs && each > Medium::kRows && large_fits<ImageInput<T>>())
      return launch<Large>(w, in, out, finish, groups, stream);
  return launch<Medium>(w, in, out, finish, groups, stream);
}

}  // namespace
}  // namespace nm

int nm_conv2d_cuda(const Nm<void>& w, Element element, const void* x, const ImageStrides& x_strides,
                   const Conv2dShape& shape, const void* bias, void* y,
                   const ImageStrides& y_strides, void* stream, Clamp clamp) {
  return cuda::with_type(element, [&](auto type) {
    using T = decltype(type);
    return nm::conv2d<T>(nm::typed<T>(w), static_cast<const T*>(x), x_strides, shape,
                         static_cast<T*>(y), y_strides, {static_cast<const T*>(bias), clamp},
                         stream);
  });
}

}  // namespace sparseprune
