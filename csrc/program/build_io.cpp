// Works that move values: in, out, split by stride, side by side, flat.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

// Rows of one plane to consecutive floats, or back.
void copy_rows(const float* from, const Planes& p, float* to) {
  for (int64_t z = 0; z < p.depth; ++z)
    for (int64_t y = 0; y < p.height; ++y, to += p.width)
      std::copy_n(from + z * p.slice + y * p.row, p.width, to);
}
void spread_rows(const float* from, const Planes& p, float* to) {
  for (int64_t z = 0; z < p.depth; ++z)
    for (int64_t y = 0; y < p.height; ++y, from += p.width)
      std::copy_n(from, p.width, to + z * p.slice + y * p.row);
}

// Tokens of tile i of a value.
int64_t tokens_of(const Value& v, int64_t tile) {
  return std::min(v.planes.width, v.shape.images - tile * v.planes.width);
}

constexpr int64_t kColumns = 128;  // transposed by one task

}  // namespace

void Builder::input(const Step& s) {
  const int64_t from = inputs_++;
  const Value v = value(s.out);
  const Planes p = v.planes;
  const Plan* plan = plan_.get();
  if (v.shape.tokens && v.rows_form)
    return work(1, {}, s.out, [=, out = s.out](const Call& call, int64_t) {
      std::copy_n(call.inputs[from], p.images * p.width, plan->at(call, out));
    });
  if (v.shape.tokens) {
    const int64_t blocks = (p.channels + kColumns - 1) / kColumns;
    return work(p.images * blocks, {}, s.out, [=, out = s.out](const Call& call, int64_t i) {
      const int64_t tile = i / blocks, begin = i % blocks * kColumns;
      panel_kernels().pack_tokens(call.inputs[from] + tile * p.width * p.channels, p.channels,
                                  tokens_of(v, tile), begin, std::min(begin + kColumns, p.channels),
                                  plan->at(call, out) + tile * p.image + begin * p.plane, p.plane);
    });
  }
  const int64_t planes = p.images * p.channels, n = parts(planes);
  const int64_t size = p.depth * p.height * p.width;
  work(n, {}, s.out, [=, out = s.out](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      float* to = plan->at(call, out) + plane * p.plane;
      std::fill_n(to, p.plane, 0.f);
      spread_rows(call.inputs[from] + plane * size, p, to + p.lead);
    });
  });
}

void Builder::output(const Step& s) {
  const int64_t to = static_cast<int64_t>(plan_->outputs.size());
  const Value v = value(s.x);
  const Planes p = v.planes;
  const Plan* plan = plan_.get();
  Sizes sizes = v.shape.lead;
  if (v.shape.tokens) {
    sizes.push_back(v.shape.channels);
  } else {
    sizes = {v.shape.images, v.shape.channels};
    for (const Step& first : steps_)
      if (first.word == Word::kInput && !first.tokens) {
        sizes.insert(sizes.end(), v.shape.size + 3 - first.dims, v.shape.size + 3);
        break;
      }
  }
  plan_->outputs.push_back(sizes);
  if (v.shape.tokens && v.rows_form)
    return work(1, {s.x}, -1, [=, x = s.x](const Call& call, int64_t) {
      std::copy_n(plan->at(call, x), p.images * p.width, call.outputs[to]);
    });
  if (v.shape.tokens) {
    const int64_t blocks = (p.channels + kColumns - 1) / kColumns;
    return work(p.images * blocks, {s.x}, -1, [=, x = s.x](const Call& call, int64_t i) {
      const int64_t tile = i / blocks, begin = i % blocks * kColumns;
      panel_kernels().store_tokens(plan->at(call, x) + tile * p.image + begin * p.plane, p.plane,
                                   std::min(kColumns, p.channels - begin), tokens_of(v, tile),
                                   call.outputs[to] + tile * p.width * p.channels + begin,
                                   p.channels, Clamp{});
    });
  }
  const int64_t planes = p.images * p.channels, n = parts(planes);
  const int64_t size = p.depth * p.height * p.width;
  work(n, {s.x}, -1, [=, x = s.x](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      copy_rows(plan->at(call, x) + plane * p.plane + p.lead, p, call.outputs[to] + plane * size);
    });
  });
}

namespace {

// The position inside the image that a padded one shows, or -1 for a zero.
int64_t inside(int64_t at, int64_t size, PadMode mode) {
  if (at >= 0 && at < size) return at;
  switch (mode) {
    case PadMode::kZeros:
      return -1;
    case PadMode::kReplicate:
      return at < 0 ? 0 : size - 1;
    case PadMode::kReflect:
      return at < 0 ? -at : 2 * (size - 1) - at;
    case PadMode::kCircular:
      return at < 0 ? at + size : at - size;
  }
  return -1;
}

// One row of a phase: to[j] = from[j * stride + residue - before], padding included.
void phase_row(const float* from, int64_t size, int64_t stride, int64_t shift, PadMode mode,
               int64_t width, float* to) {
  const int64_t begin = std::clamp<int64_t>((stride - 1 - shift) / stride, 0, width);
  const int64_t end = std::clamp<int64_t>((size - shift + stride - 1) / stride, begin, width);
  for (int64_t j = 0; j < width; ++j) {
    if (j == begin && end > begin) {
      plane_kernels().every(from + begin * stride + shift, stride, end - begin, to + begin);
      j = end - 1;
      continue;
    }
    const int64_t at = inside(j * stride + shift, size, mode);
    to[j] = at >= 0 && at < size ? from[at] : 0.f;
  }
}

}  // namespace

// The image as one plane per channel and phase of the stride, with its padding written out.
void Builder::split(const Step& s, const Taps& taps) {
  const Planes x = value(s.x).planes, y = value(taps.source).planes;
  const Window w = s.window;
  Phases phases[3];
  for (int d = 0; d < 3; ++d) phases[d] = phases_of(w, d);
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes), count = taps.phases;
  work(n, {s.x}, taps.source, [=, from = s.x, out = taps.source](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, channel = plane % y.channels;
      int64_t shift[3], phase = channel % count;
      for (int d = 2; d >= 0; --d) {
        const int64_t residues = static_cast<int64_t>(phases[d].residues.size());
        shift[d] = phases[d].residues[phase % residues] - w.before[d];
        phase /= residues;
      }
      const float* source = plan->at(call, from) + x.at(image, channel / count);
      float* to = plan->at(call, out) + y.at(image, channel);
      std::fill_n(to - y.lead, y.plane, 0.f);
      for (int64_t z = 0; z < y.depth; ++z)
        for (int64_t r = 0; r < y.height; ++r) {
          const int64_t zs = inside(z * w.stride[0] + shift[0], x.depth, w.mode);
          const int64_t rs = inside(r * w.stride[1] + shift[1], x.height, w.mode);
          if (zs < 0 || zs >= x.depth || rs < 0 || rs >= x.height) continue;
          phase_row(source + zs * x.slice + rs * x.row, x.width, w.stride[2], shift[2], w.mode,
                    y.width, to + z * y.slice + r * y.row);
        }
    });
  });
}

void Builder::cat(const Step& s) {
  const Planes y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = y.images * y.channels, n = parts(planes);
  const int64_t split_at = value(s.x).planes.channels;
  work(n, {s.x, s.y}, s.out, [=, step = s](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / y.channels, channel = plane % y.channels;
      const bool second = channel >= split_at;
      const int64_t from = second ? step.y : step.x;
      float* to = plan->at(call, step.out) + y.at(image, channel);
      std::copy_n(plan->at(call, from) +
                      plan->values[from].planes.at(image, channel - (second ? split_at : 0)),
                  y.lanes(), to);
      clear_margins(to - y.lead, y);
    });
  });
}

void Builder::flatten(const Step& s) {
  const Planes x = value(s.x).planes;
  const Value out = value(s.out);
  const int64_t step = &s - steps_.data(),
                rows = rows_value_[step] >= 0 ? rows_value_[step] : s.out;
  const Plan* plan = plan_.get();
  const int64_t planes = x.images * x.channels, n = parts(planes);
  const int64_t size = x.depth * x.height * x.width;
  work(n, {s.x}, rows, [=, from = s.x](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      copy_rows(plan->at(call, from) + plane * x.plane + x.lead, x,
                plan->at(call, rows) + plane * size);
    });
  });
  if (rows == s.out) return;
  const Planes p = out.planes;
  const int64_t blocks = (p.channels + kColumns - 1) / kColumns;
  work(p.images * blocks, {rows}, s.out, [=, to = s.out](const Call& call, int64_t i) {
    const int64_t tile = i / blocks, begin = i % blocks * kColumns;
    panel_kernels().pack_tokens(plan->at(call, rows) + tile * p.width * p.channels, p.channels,
                                tokens_of(out, tile), begin, std::min(begin + kColumns, p.channels),
                                plan->at(call, to) + tile * p.image + begin * p.plane, p.plane);
  });
}

}  // namespace sparseprune
