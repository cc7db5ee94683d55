#include "program/conv.h"

#include <bit>

#include "kernels/cpu/isa.h"
#include "program/cache.h"

namespace sparseprune {
namespace {

std::vector<Weight> tensors(const CsrRows& w, const float* bias) {
  const int64_t n = w.row_start[w.rows];
  return {{w.values, n, n},
          {w.columns, n, n},
          {nullptr, 0, 0},
          {w.row_start, w.rows + 1, w.rows + 1},
          {bias, w.rows, w.rows}};
}
// Only counts are looked at beyond their data: their last dimension tells the layout.
std::vector<Weight> tensors(const CsrGroups& w, const float* bias) {
  return {{w.values, w.starts[2 * w.blocks() * w.groups()], 0},
          {w.columns, 0, 0},
          {w.counts, 0, w.cell},
          {w.starts, 0, 0},
          {bias, w.rows, w.rows}};
}
std::vector<Weight> tensors(const CsrSorted& w, const float* bias) {
  return {{w.values, w.starts[2 * w.blocks() * w.segments()], 0},
          {w.columns, 0, 0},
          {w.counts, 0, w.kPair},
          {w.starts, 0, 0},
          {bias, w.rows, w.rows}};
}

int64_t block(const CsrRows&) { return 0; }
template <typename W>
int64_t block(const W& w) {
  return w.block;
}

std::vector<Step> program(const Conv2dShape& s, const Step& weight) {
  Step input{}, conv = weight, output{};
  input.word = Word::kInput, input.out = 0, input.channels = s.channels, input.dims = 2;
  conv.word = Word::kCsr, conv.out = 1, conv.x = 0;
  conv.groups = s.groups;
  conv.window = {{1, s.kernel_h, s.kernel_w},     {1, s.stride_h, s.stride_w},
                 {0, s.padding_h, s.padding_w},   {0, s.padding_h, s.padding_w},
                 {1, s.dilation_h, s.dilation_w}, PadMode::kZeros};
  output.word = Word::kOutput, output.x = 1;
  return {input, conv, output};
}

}  // namespace

template <typename W>
void csr_conv2d(const W& w, const float* x, const Conv2dShape& s, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  Step weight{};
  weight.rows = w.rows, weight.cols = w.cols, weight.block = block(w);
  weight.has_bias = bias != nullptr;
  weight.activation.clamp = clamp;
  const std::vector<Weight> weights = tensors(w, bias);
  const StagesKey key{"",
                      {s.batch,
                       s.channels,
                       s.height,
                       s.width,
                       s.kernel_h,
                       s.kernel_w,
                       s.stride_h,
                       s.stride_w,
                       s.padding_h,
                       s.padding_w,
                       s.dilation_h,
                       s.dilation_w,
                       s.groups,
                       w.rows,
                       w.cols,
                       weight.block,
                       weights[2].last,
                       weight.has_bias,
                       std::bit_cast<int32_t>(clamp.low),
                       std::bit_cast<int32_t>(clamp.high),
                       threads.count,
                       static_cast<int64_t>(current_isa())}};
  const auto stages = cached_stages(key, [&] {
    return make_stages(program(s, weight), {{s.batch, s.channels, s.height, s.width}}, weights,
                       threads.count);
  });
  Call call{{x}, {y}, weights};
  run_stages(*stages, call, threads);
}

template void csr_conv2d(const CsrRows&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);
template void csr_conv2d(const CsrGroups&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);
template void csr_conv2d(const CsrSorted&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);

}  // namespace sparseprune
