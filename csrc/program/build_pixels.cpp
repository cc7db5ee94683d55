// Works that make tokens of the pixels of images, and images of such tokens.
#include <algorithm>

#include "program/build.h"

namespace sparseprune {
namespace {

// Pixels that lie side by side in a row of a plane and in a tile of tokens.
struct Stretch {
  int64_t image, at;  // at: of element 0 of the plane
  int64_t tile, lane, count;
};

// All of them, in order; a value's tokens count through its images.
std::vector<Stretch> stretches_of(const Planes& image, const Planes& tokens) {
  std::vector<Stretch> all;
  int64_t token = 0;
  for (int64_t n = 0; n < image.images; ++n)
    for (int64_t z = 0; z < image.depth; ++z)
      for (int64_t r = 0; r < image.height; ++r)
        for (int64_t j = 0; j < image.width;) {
          const int64_t lane = token % tokens.width;
          const int64_t count = std::min(tokens.width - lane, image.width - j);
          const int64_t at = z * image.slice + r * image.row + j;
          Stretch* last = all.empty() ? nullptr : &all.back();
          const int64_t tile = token / tokens.width;
          if (last && last->image == n && last->tile == tile && last->at + last->count == at)
            last->count += count;
          else
            all.push_back({n, at, tile, lane, count});
          token += count, j += count;
        }
  return all;
}

// Zeros wherever a plane holds no element.
void clear_around(float* plane, const Planes& p) {
  clear_margins(plane, p);
  float* element = plane + p.lead;
  for (int64_t z = 0; z < p.depth; ++z)
    for (int64_t r = 0; r < p.height; ++r) {
      const int64_t begin = z * p.slice + r * p.row + p.width;
      const int64_t end = r + 1 < p.height  ? begin - p.width + p.row
                          : z + 1 < p.depth ? (z + 1) * p.slice
                                            : p.lanes();
      std::fill(element + begin, element + end, 0.f);
    }
}

}  // namespace

void Builder::pixels(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const std::vector<Stretch> stretches = stretches_of(x, y);
  const int64_t n = parts(y.channels);
  const Plan* plan = plan_.get();
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, y.channels, [&](int64_t c) {
      const float* from = plan->at(call, step.x);
      float* to = plan->at(call, step.out) + c * y.plane;
      for (const Stretch& each : stretches)
        std::copy_n(from + x.at(each.image, c) + each.at, each.count,
                    to + each.tile * y.image + each.lane);
    });
  });
}

void Builder::picture(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const std::vector<Stretch> stretches = stretches_of(y, x);
  const int64_t n = parts(y.channels);
  const Plan* plan = plan_.get();
  work(n, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, y.channels, [&](int64_t c) {
      const float* from = plan->at(call, step.x) + c * x.plane;
      float* to = plan->at(call, step.out);
      for (const Stretch& each : stretches)
        std::copy_n(from + each.tile * x.image + each.lane, each.count,
                    to + y.at(each.image, c) + each.at);
      for (int64_t image = 0; image < y.images; ++image)
        clear_around(to + y.at(image, c) - y.lead, y);
    });
  });
}

}  // namespace sparseprune
