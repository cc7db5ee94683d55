// Works that lay images side by side and apart again.
#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

// One channel of `images` that lie `pitch` floats apart.
void together(const float* from, int64_t pitch, int64_t images, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i, to += images)
    for (int64_t n = 0; n < images; ++n) to[n] = from[n * pitch + i];
}

void apart(const float* from, int64_t images, int64_t size, float* to, int64_t pitch) {
  for (int64_t i = 0; i < size; ++i, from += images)
    for (int64_t n = 0; n < images; ++n) to[n * pitch + i] = from[n];
}

}  // namespace

void Builder::input_innermost(const Step& s, int64_t from) {
  const Planes p = value(s.out).planes;
  const int64_t wide = p.depth * p.height * p.width, size = wide / s.innermost;
  const int64_t n = parts(p.channels);
  const Plan* plan = plan_.get();
  work(n, {}, s.out, [=, out = s.out, images = s.innermost](const Call& call, int64_t i) {
    float* turned = panel_scratch(wide);
    part(i, n, p.channels, [&](int64_t c) {
      together(call.inputs[from] + c * size, p.channels * size, images, size, turned);
      plane_kernels().spread(turned, p, 0, p.depth * p.height, plan->at(call, out) + p.at(0, c));
    });
  });
}

void Builder::output_innermost(const Step& s, int64_t to) {
  const Planes p = value(s.x).planes;
  const int64_t wide = p.depth * p.height * p.width, size = wide / s.innermost;
  const int64_t n = parts(p.channels);
  const Plan* plan = plan_.get();
  work(n, {s.x}, -1, [=, x = s.x, images = s.innermost](const Call& call, int64_t i) {
    float* turned = panel_scratch(wide);
    part(i, n, p.channels, [&](int64_t c) {
      copy_rows(plan->at(call, x) + p.at(0, c), p, turned);
      apart(turned, images, size, call.outputs[to] + c * size, p.channels * size);
    });
  });
}

void Builder::mean_innermost(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const int64_t n = parts(y.channels);
  const Plan* plan = plan_.get();
  work(n, {s.x}, s.out, [=, from = s.x, to = s.out](const Call& call, int64_t i) {
    part(i, n, y.channels, [&](int64_t c) {
      plane_kernels().means(plan->at(call, from) + x.at(0, c), x, y,
                            plan->at(call, to) + y.at(0, c));
    });
  });
}

}  // namespace sparseprune
