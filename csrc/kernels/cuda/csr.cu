#include <algorithm>

#include "kernels/cuda/csr.cuh"
#include "kernels/cuda/csr_layouts.cuh"

namespace sparseprune {
namespace {

template <typename W, typename Access>
int launch(const W& w, const Access& access, int64_t tokens, const float* bias, void* stream,
           Clamp clamp) {
  constexpr int64_t kMostBlocks = 1 << 20;  // the kernels stride over what is left
  const int64_t blocks = (tokens * w.rows + csr::kWarpsPerBlock - 1) / csr::kWarpsPerBlock;
  csr::multiply<<<static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMostBlocks)),
                  csr::kLanes * csr::kWarpsPerBlock, csr::shared_floats(w) * sizeof(float),
                  static_cast<cudaStream_t>(stream)>>>(w, access, tokens, bias, clamp);
  return cudaGetLastError();
}

}  // namespace

template <typename W>
int csr_linear_cuda(const W& w, const float* x, int64_t tokens, const float* bias, float* y,
                    void* stream, Clamp clamp) {
  return launch(w, csr::LinearAccess{x, y, w.cols, w.rows}, tokens, bias, stream, clamp);
}

template <typename W>
int csr_conv2d_cuda(const W& w, const float* x, const Conv2dShape& s, const float* bias, float* y,
                    void* stream, Clamp clamp) {
  const csr::ConvAccess access{x, y, s, s.out_height(), s.out_width()};
  return launch(w, access, s.batch * access.out_h * access.out_w, bias, stream, clamp);
}

template int csr_linear_cuda(const CsrRows&, const float*, int64_t, const float*, float*, void*,
                             Clamp);
template int csr_linear_cuda(const CsrGroups&, const float*, int64_t, const float*, float*, void*,
                             Clamp);
template int csr_linear_cuda(const CsrSorted&, const float*, int64_t, const float*, float*, void*,
                             Clamp);
template int csr_conv2d_cuda(const CsrRows&, const float*, const Conv2dShape&, const float*, float*,
                             void*, Clamp);
template int csr_conv2d_cuda(const CsrGroups&, const float*, const Conv2dShape&, const float*,
                             float*, void*, Clamp);
template int csr_conv2d_cuda(const CsrSorted&, const float*, const Conv2dShape&, const float*,
                             float*, void*, Clamp);

const char* cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace sparseprune
