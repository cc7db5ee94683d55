// Works on the tokens of sequences: normalisation of each, attention between them.
#include <algorithm>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

// Tokens of one sequence that lie in one tile of a value, from a lane on.
struct Stretch {
  int64_t tile, lane, count;
  int64_t first;  // of them in their sequence
};

// The stretches of every sequence of `length` tokens in tiles of `width`.
std::vector<std::vector<Stretch>> stretches_of(int64_t tokens, int64_t length, int64_t width) {
  std::vector<std::vector<Stretch>> all;
  for (int64_t begin = 0; begin < tokens; begin += length) {
    all.emplace_back();
    for (int64_t at = begin; at < begin + length;) {
      const int64_t tile = at / width, lane = at % width;
      const int64_t count = std::min(width - lane, begin + length - at);
      all.back().push_back({tile, lane, count, at - begin});
      at += count;
    }
  }
  return all;
}

// First channel of a head of queries, keys or values.
int64_t channel_of(const Step& s, int which, int64_t head) {
  return s.first[which] + head * s.strides[which];
}

int64_t at(const Planes& p, int64_t tile, int64_t channel, int64_t lane) {
  return tile * p.image + channel * p.plane + lane;
}

}  // namespace

void Builder::norm(const Step& s) {
  Value& out = value(s.out);
  const Planes x = value(s.x).planes;
  const bool rows = out.rows_form;
  out.over = s.x;
  const Plan* plan = plan_.get();
  const auto norm = [step = s](const Call& call) {
    const auto tensor = [&](int64_t i) {
      return static_cast<const float*>(call.weights[step.tensors + i].data);
    };
    return Norm{step.channels, step.epsilon, step.centred, tensor(0),
                step.has_bias ? tensor(1) : nullptr};
  };
  // Few tiles are shared out vector by vector.
  const int64_t lanes = rows ? 1 : x.images < threads_ ? std::min<int64_t>(16, x.plane) : x.plane;
  const int64_t pieces = rows ? 1 : x.plane / lanes;
  work(x.images * pieces, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    const int64_t from = i / pieces * x.image + i % pieces * lanes;
    const float* in = plan->at(call, step.x) + from;
    float* to = plan->at(call, step.out) + from;
    if (rows) return plane_kernels().normalise_row(norm(call), in, to);
    plane_kernels().normalise(norm(call), in, x.plane, lanes, to);
  });
}

// Tables of angles lie in tiles as their tokens do. A task is one head of a tile.
void Builder::rotary(const Step& s) {
  const Planes x = value(s.x).planes, table = value(s.y).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  work(x.images * s.heads, {s.x, s.y, s.z}, s.out, [=, step = s](const Call& call, int64_t i) {
    const int64_t tile = i / step.heads, head = i % step.heads;
    const Rotation rotation{step.head,
                            step.count,
                            step.pairs,
                            plan->at(call, step.y) + at(table, tile, 0, 0),
                            plan->at(call, step.z) + at(table, tile, 0, 0),
                            table.plane};
    plane_kernels().rotate(
        rotation, plan->at(call, step.x) + at(x, tile, channel_of(step, 0, head), 0), x.plane,
        x.plane, plan->at(call, step.out) + at(y, tile, head * step.head, 0), y.plane);
  });
}

// A task is one head of the queries of one stretch, and all keys of their sequence.
void Builder::attention(const Step& s) {
  const Value &query = value(s.x), &key = value(s.y);
  const Planes q = query.planes, k = key.planes, v = value(s.z).planes, y = value(s.out).planes;
  const int64_t length = query.shape.lead.back(), keys = key.shape.lead.back();
  const auto sequences = stretches_of(query.shape.images, length, q.width);
  const auto seen = stretches_of(key.shape.images, keys, k.width);
  std::vector<std::pair<int64_t, Stretch>> tasks;  // with the sequence
  for (size_t n = 0; n < sequences.size(); ++n)
    for (const Stretch& part : sequences[n]) tasks.push_back({n, part});
  plan_->multiply_adds += 2 * query.shape.images * keys * s.heads * s.head;
  const int64_t scratch = (2 * s.head + k.width) * lanes_;
  const Plan* plan = plan_.get();
  const Planes mask = s.mask >= 0 ? value(s.mask).planes : Planes{};
  work(static_cast<int64_t>(tasks.size()) * s.heads, {s.x, s.y, s.z, s.mask}, s.out,
       [=, step = s](const Call& call, int64_t i) {
         const auto& [sequence, part] = tasks[i / step.heads];
         const int64_t head = i % step.heads, shared = head / step.group;
         const float *from = plan->at(call, step.x), *keys_at = plan->at(call, step.y);
         const float* values_at = plan->at(call, step.z);
         const float* added = nullptr;
         if (step.mask >= 0) added = plan->at(call, step.mask) + at(mask, part.tile, 0, part.lane);
         std::vector<Keys> tiles;
         for (const Stretch& other : seen[sequence])
           tiles.push_back({keys_at + at(k, other.tile, channel_of(step, 1, shared), other.lane),
                            k.plane,
                            values_at + at(v, other.tile, channel_of(step, 2, shared), other.lane),
                            v.plane, other.count, other.first});
         const Queries queries{
             from + at(q, part.tile, channel_of(step, 0, head), part.lane),
             q.plane,
             part.count,
             part.first,
             plan->at(call, step.out) + at(y, part.tile, head * step.head, part.lane),
             y.plane};
         plane_kernels().attend(queries, tiles.data(), static_cast<int64_t>(tiles.size()),
                                {step.head, step.scale, step.causal, added, mask.plane},
                                panel_scratch(scratch));
       });
}

}  // namespace sparseprune
