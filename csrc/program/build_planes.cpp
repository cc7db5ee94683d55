// Works over whole planes: depthwise, pooling, means, sums and scales.
#include <algorithm>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

std::vector<int32_t> narrow(const std::vector<int64_t>& from, int64_t phases_plane,
                            const std::vector<int64_t>& phase) {
  std::vector<int32_t> to;
  for (size_t t = 0; t < from.size(); ++t)
    to.push_back(static_cast<int32_t>(from[t] + phase[t] * phases_plane));
  return to;
}

}  // namespace

void Builder::depthwise(size_t step) {
  const Step& s = steps_[step];
  const Taps& taps = taps_[step];
  plan_->multiply_adds += weights_[s.tensors].numel * value(s.out).planes.lanes();
  if (taps.source == s.x && s.window.stride[2] == 2) return depthwise_row2(s, taps);
  if (taps.source != s.x) split(s, taps);
  const Planes x = value(taps.source).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes), per = taps.phases;
  work(n, {taps.source, s.y}, s.out,
       [=, step = s, source = taps.source, lives = live(y),
        offsets = narrow(taps.flat, x.plane, taps.phase)](const Call& call, int64_t i) {
         const auto* weight = static_cast<const float*>(call.weights[step.tensors].data);
         const auto* bias = step.has_bias
                                ? static_cast<const float*>(call.weights[step.tensors + 1].data)
                                : nullptr;
         const int64_t n_taps = static_cast<int64_t>(offsets.size());
         part(i, n, planes, [&](int64_t plane) {
           const int64_t image = plane / y.channels, c = plane % y.channels;
           const int64_t to = y.at(image, c);
           float* out = plan->at(call, step.out) + to;
           plane_kernels().depthwise(
               plan->at(call, source) + x.at(image, c / step.multiplier * per), offsets.data(),
               weight + c * n_taps, n_taps, bias ? bias[c] : 0.f,
               step.y >= 0 ? plan->at(call, step.y) + plan->values[step.y].planes.at(image, c)
                           : nullptr,
               lives->data(), y.lanes(), step.activation, out);
           clear_margins(out - y.lead, y);
         });
       });
}

void Builder::depthwise_row2(const Step& s, const Taps& taps) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  const int64_t slices = s.window.stride[0] * x.slice, rows = s.window.stride[1] * x.row;
  work(n, {s.x, s.y}, s.out,
       [=, step = s, offsets = narrow(taps.flat, 0, taps.phase)](const Call& call, int64_t i) {
         const auto* weight = static_cast<const float*>(call.weights[step.tensors].data);
         const auto* bias = step.has_bias
                                ? static_cast<const float*>(call.weights[step.tensors + 1].data)
                                : nullptr;
         const int64_t n_taps = static_cast<int64_t>(offsets.size());
         part(i, n, planes, [&](int64_t plane) {
           const int64_t image = plane / y.channels, c = plane % y.channels;
           const float* from = plan->at(call, step.x) + x.at(image, c / step.multiplier);
           const float* more =
               step.y >= 0 ? plan->at(call, step.y) + plan->values[step.y].planes.at(image, c)
                           : nullptr;
           float* out = plan->at(call, step.out) + y.at(image, c);
           std::fill_n(out - y.lead, y.plane, 0.f);
           for (int64_t z = 0; z < y.depth; ++z)
             for (int64_t r = 0; r < y.height; ++r) {
               const int64_t at = z * y.slice + r * y.row;
               plane_kernels().depthwise_row2(from + z * slices + r * rows, offsets.data(),
                                              weight + c * n_taps, n_taps, bias ? bias[c] : 0.f,
                                              more ? more + at : nullptr, y.width, step.activation,
                                              out + at);
             }
         });
       });
}

void Builder::pool(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  PoolWindow window{};
  const int64_t size[3] = {x.depth, x.height, x.width};
  int64_t scratch = x.width + 64;
  for (int d = 0; d < 3; ++d) {
    window.kernel[d] = s.window.kernel[d], window.stride[d] = s.window.stride[d];
    window.before[d] = s.window.before[d], window.dilation[d] = s.window.dilation[d];
    window.padded_end[d] = s.window.before[d] + size[d] + s.window.after[d];
    scratch += s.window.before[d] + s.window.after[d] + s.window.stride[d] +
               s.window.kernel[d] * s.window.dilation[d];
  }
  window.average = s.average, window.count_padding = s.count_padding;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, c = plane % y.channels;
      float* out = plan->at(call, step.out) + y.at(image, c);
      std::fill_n(out - y.lead, y.plane, 0.f);
      plane_kernels().pool(plan->at(call, step.x) + x.at(image, c), x, window, y, out,
                           panel_scratch(scratch));
    });
  });
}

void Builder::mean(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  const float size = static_cast<float>(x.depth * x.height * x.width);
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, c = plane % y.channels;
      float* out = plan->at(call, step.out) + y.at(image, c);
      std::fill_n(out - y.lead, y.plane, 0.f);
      *out = plane_kernels().sum(plan->at(call, step.x) + x.at(image, c), x.lanes()) / size;
    });
  });
}

// Also the last part of a csr step over few tokens, where out is x.
void Builder::add(const Step& s) {
  Value& v = value(s.out);
  const Planes &before = value(s.x).planes, &after = v.planes;
  if (s.out != s.x && before.lead == after.lead && before.plane == after.plane) v.over = s.x;
  const bool flat = v.shape.tokens;  // tokens have no padding: one stream
  const Planes y = v.planes;
  const int64_t planes = flat ? 1 : y.images * y.channels, n = flat ? 1 : parts(planes);
  const int64_t lanes = flat ? v.floats() : y.lanes();
  Planes stream;
  stream.width = stream.row = stream.slice = lanes;
  const Plan* plan = plan_.get();
  work(n, {s.x, s.y}, s.out,
       [=, step = s, lives = flat ? live(stream) : live(y)](const Call& call, int64_t i) {
         part(i, n, planes, [&](int64_t plane) {
           const auto at = [&](int64_t value) {
             const Planes& p = plan->values[value].planes;
             return plan->at(call, value) +
                    (flat ? 0 : p.at(plane / y.channels, plane % y.channels));
           };
           float* out = at(step.out);
           plane_kernels().finish(at(step.x), lanes, step.y >= 0 ? at(step.y) : nullptr,
                                  lives->data(), lanes, 1, step.activation, out, lanes);
           if (!flat) clear_margins(out - y.lead, y);
         });
       });
}

void Builder::scale(const Step& s) {
  const Planes x = value(s.x).planes, by = value(s.y).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  work(n, {s.x, s.y}, s.out, [=, step = s, lives = live(y)](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, c = plane % y.channels;
      float* out = plan->at(call, step.out) + y.at(image, c);
      plane_kernels().scale(plan->at(call, step.x) + x.at(image, c),
                            plan->at(call, step.y)[by.at(image, c)], lives->data(), y.lanes(),
                            step.activation, out);
      clear_margins(out - y.lead, y);
    });
  });
}

}  // namespace sparseprune
