// Works over whole planes: depthwise, pooling, means, sums and scales.
#include <algorithm>
#include <stdexcept>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

std::vector<int32_t> narrow(const std::vector<int64_t>& from, int64_t phases_plane,
                            const std::vector<int64_t>& phase) {
  std::vector<int32_t> to;
  for (size_t t = 0; t < from.size(); ++t) {
    const int64_t at = from[t] + phase[t] * phases_plane;
    if (at > INT32_MAX) throw std::invalid_argument("run: inputs must be smaller images");
    to.push_back(static_cast<int32_t>(at));
  }
  return to;
}

}  // namespace

void Builder::depthwise(size_t step) {
  const Step& s = steps_[step];
  const Taps& taps = taps_[step];
  const bool tokens = value(s.x).shape.tokens;  // one tap, and tiles lie as planes do
  const int64_t source = tokens ? s.x : taps.source;
  if (source != s.x) split(s, taps);
  const Planes x = value(source).planes, y = value(s.out).planes;
  plan_->multiply_adds += weights_[s.tensors].numel * y.lanes();
  const bool strided = source == s.x && s.window.stride[2] == 2;
  DepthwiseWindow window{};
  window.taps = s.window.taps(), window.stride = strided ? 2 : 1, window.to = y;
  window.row = strided ? s.window.stride[1] * x.row : y.row;
  window.slice = strided ? s.window.stride[0] * x.slice : y.slice;
  const int64_t planes = y.images * y.channels, n = parts(planes), phases = taps.phases;
  const Plan* plan = plan_.get();
  work(n, {source, s.y}, s.out,
       [=, step = s, lives = live(y),
        offsets = tokens ? std::vector<int32_t>{0} : narrow(taps.flat, x.plane, taps.phase)](
           const Call& call, int64_t i) {
         DepthwiseWindow w = window;
         w.offsets = offsets.data(), w.live = lives->data();
         const auto tensor = [&](int64_t t) {
           return static_cast<const float*>(call.weights[step.tensors + t].data);
         };
         const int64_t end = (i + 1) * planes / n;
         for (int64_t plane = i * planes / n; plane < end;) {
           const int64_t c = plane % y.channels;
           const int64_t run = step.multiplier > 1 ? 1 : std::min(end - plane, y.channels - c);
           const Planes& more = plan->values[std::max<int64_t>(step.y, 0)].planes;
           plane_kernels().depthwise(
               w,
               {run, plan->at(call, source) + plane / step.multiplier * phases * x.plane + x.lead,
                phases * x.plane, tensor(0) + c * w.taps, step.has_bias ? tensor(1) + c : nullptr,
                step.y >= 0 ? plan->at(call, step.y) + plane * more.plane + more.lead : nullptr,
                more.plane, plan->at(call, step.out) + plane * y.plane + y.lead},
               step.activation);
           plane += run;
         }
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
      plane_kernels().pool(plan->at(call, step.x) + x.at(image, c), x, window, y, out,
                           panel_scratch(scratch));
    });
  });
}

void Builder::mean(const Step& s) {
  if (s.innermost > 1) return mean_innermost(s);
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  const int64_t size = x.depth * x.height * x.width;
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    const int64_t begin = i * planes / n, end = (i + 1) * planes / n;
    plane_kernels().mean(plan->at(call, step.x) + begin * x.plane + x.lead, x.plane, x.lanes(),
                         size, end - begin, y, plan->at(call, step.out) + begin * y.plane + y.lead);
  });
}

void Builder::adaptive(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  if (x.depth == y.depth && x.height == y.height && x.width == y.width) return;  // without_copies
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, c = plane % y.channels;
      plane_kernels().adaptive(plan->at(call, step.x) + x.at(image, c), x, y,
                               plan->at(call, step.out) + y.at(image, c),
                               panel_scratch(x.width + 16));
    });
  });
}

constexpr int64_t kStretch = 4096;  // floats of tokens that are added at once

// Products as well, and the last part of a csr step over few tokens, where out is x.
void Builder::add(const Step& s) {
  Value& v = value(s.out);
  const Planes &before = value(s.x).planes, &after = v.planes;
  if (s.out != s.x && before.lead == after.lead && before.plane == after.plane) v.over = s.x;
  const bool flat = v.shape.tokens;  // tokens have no padding: one stream
  const Planes y = v.planes;
  const int64_t lanes = flat ? kStretch : y.lanes();
  const int64_t planes = flat ? (v.floats() + lanes - 1) / lanes : y.images * y.channels;
  const int64_t n = parts(planes), floats = v.floats();
  Planes stream;
  stream.width = stream.row = stream.slice = lanes;
  const Plan* plan = plan_.get();
  work(n, {s.x, s.y}, s.out,
       [=, step = s, lives = flat ? live(stream) : live(y)](const Call& call, int64_t i) {
         part(i, n, planes, [&](int64_t plane) {
           const auto at = [&](int64_t value) {
             const Planes& p = plan->values[value].planes;
             return plan->at(call, value) +
                    (flat ? plane * lanes : p.at(plane / y.channels, plane % y.channels));
           };
           float* out = at(step.out);
           const int64_t some = flat ? std::min(lanes, floats - plane * lanes) : lanes;
           if (step.word == Word::kMultiply)  // whose padding is zeros in both
             plane_kernels().multiply(at(step.x), at(step.y), some, out);
           else
             plane_kernels().finish(at(step.x), some, step.y >= 0 ? at(step.y) : nullptr,
                                    lives->data(), some, 1, step.activation, out, some);
           if (!flat) clear_margins(out - y.lead, y);
         });
       });
}

void Builder::upsample(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, c = plane % y.channels;
      plane_kernels().nearest(plan->at(call, step.x) + x.at(image, c), x, step.size, y,
                              plan->at(call, step.out) + y.at(image, c));
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
