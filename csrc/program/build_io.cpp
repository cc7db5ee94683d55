// Works that move values: in, out, split by stride, side by side, flat.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"

namespace sparseprune {
namespace {

// The plane with rows joined that have nothing between them: fewer and longer ones.
Planes joined(Planes p) {
  if (p.row == p.width) p.width *= p.height, p.height = 1, p.row = p.slice;
  if (p.height == 1 && p.slice == p.width) p.width *= p.depth, p.depth = 1;
  return p;
}

// Calls body(plane, begin, end) for the rows of part i of `parts` of all rows of all planes.
template <typename Body>
void part_of_rows(int64_t i, int64_t parts, int64_t planes, int64_t rows, const Body& body) {
  const int64_t end = (i + 1) * planes * rows / parts;
  for (int64_t at = i * planes * rows / parts; at < end;) {
    const int64_t plane = at / rows, stop = std::min(end, (plane + 1) * rows);
    body(plane, at - plane * rows, stop - plane * rows);
    at = stop;
  }
}

// Tokens of tile i of a value.
int64_t tokens_of(const Value& v, int64_t tile) {
  return std::min(v.planes.width, v.shape.images - tile * v.planes.width);
}

constexpr int64_t kColumns = 128;   // transposed by one task
constexpr int64_t kManyPlanes = 4;  // per thread: enough to share out whole ones

int64_t column_blocks(const Value& v) { return (v.planes.channels + kColumns - 1) / kColumns; }

// Block i of all columns of all tiles of v, from rows `pitch` floats apart.
void rows_to_tiles(const float* rows, int64_t pitch, const Value& v, int64_t i, float* tiles) {
  const Planes& p = v.planes;
  const int64_t tile = i / column_blocks(v), begin = i % column_blocks(v) * kColumns;
  panel_kernels().pack_tokens(rows + tile * p.width * pitch, pitch, tokens_of(v, tile), begin,
                              std::min(begin + kColumns, p.channels),
                              tiles + tile * p.image + begin * p.plane, p.plane);
}

void tiles_to_rows(const float* tiles, const Value& v, int64_t i, float* rows, int64_t pitch) {
  const Planes& p = v.planes;
  const int64_t tile = i / column_blocks(v), begin = i % column_blocks(v) * kColumns;
  panel_kernels().store_tokens(tiles + tile * p.image + begin * p.plane, p.plane,
                               std::min(kColumns, p.channels - begin), tokens_of(v, tile),
                               rows + tile * p.width * pitch + begin, pitch, Clamp{});
}

// Channels [begin, begin + count) of an image whose `groups` groups are dealt in turn.
std::vector<int64_t> dealt(int64_t channels, int64_t groups, int64_t begin, int64_t count) {
  std::vector<int64_t> from;
  for (int64_t c = begin; c < begin + count; ++c)
    from.push_back(c % groups * (channels / groups) + c / groups);
  return from;
}

}  // namespace

void copy_rows(const float* from, const Planes& p, float* to) {
  constexpr int64_t kAtOnce = 16;  // and what is too much is written again
  const float* end = to + p.depth * p.height * p.width;
  for (int64_t z = 0; z < p.depth; ++z)
    for (int64_t y = 0; y < p.height; ++y, to += p.width) {
      const float* row = from + z * p.slice + y * p.row;
      if (p.width < kAtOnce && end - to >= kAtOnce)
        std::copy_n(row, kAtOnce, to);
      else
        std::copy_n(row, p.width, to);
    }
}

void Builder::input(const Step& s) {
  const int64_t from = inputs_++;
  const Value v = value(s.out);
  const Planes p = v.planes;
  const Plan* plan = plan_.get();
  if (v.shape.tokens && v.rows_form)
    return work(p.images, {}, s.out, [=, out = s.out](const Call& call, int64_t i) {
      std::copy_n(call.inputs[from] + i * p.width, p.width, plan->at(call, out) + i * p.image);
    });
  if (v.shape.tokens)
    return work(p.images * column_blocks(v), {}, s.out,
                [=, out = s.out](const Call& call, int64_t i) {
                  rows_to_tiles(call.inputs[from], p.channels, v, i, plan->at(call, out));
                });
  if (s.innermost > 1) return input_innermost(s, from);
  // Rows, because images of few channels are as large as any.
  const int64_t planes = p.images * p.channels, size = p.depth * p.height * p.width;
  const Planes to = planes >= kManyPlanes * threads_ ? joined(p) : p;
  const int64_t rows = to.depth * to.height, n = parts(planes * rows);
  work(n, {}, s.out, [=, out = s.out](const Call& call, int64_t i) {
    part_of_rows(i, n, planes, rows, [&](int64_t plane, int64_t begin, int64_t end) {
      plane_kernels().spread(call.inputs[from] + plane * size, to, begin, end,
                             plan->at(call, out) + plane * p.plane + p.lead);
    });
  });
}

void Builder::output(const Step& s) {
  const int64_t to = outputs_++;
  const Value v = value(s.x);
  const Planes p = v.planes;
  const Plan* plan = plan_.get();
  if (v.shape.tokens && v.rows_form)
    return work(p.images, {s.x}, -1, [=, x = s.x](const Call& call, int64_t i) {
      std::copy_n(plan->at(call, x) + i * p.image, p.width, call.outputs[to] + i * p.width);
    });
  if (v.shape.tokens)
    return work(p.images * column_blocks(v), {s.x}, -1, [=, x = s.x](const Call& call, int64_t i) {
      tiles_to_rows(plan->at(call, x), v, i, call.outputs[to], p.channels);
    });
  if (s.innermost > 1) return output_innermost(s, to);
  const int64_t planes = p.images * p.channels, size = p.depth * p.height * p.width;
  const Planes rows = joined(p);
  const int64_t n = parts(planes);
  work(n, {s.x}, -1, [=, x = s.x](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      copy_rows(plan->at(call, x) + plane * p.plane + p.lead, rows,
                call.outputs[to] + plane * size);
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

// The phases in width that one phase in depth and height has.
struct Split {
  Window window;
  Planes x, y;
  std::vector<int32_t> rows;
  std::vector<int64_t> shift;

  Split(const Window& w, const Planes& from, const Planes& to, int64_t slice_shift,
        int64_t row_shift, const std::vector<int64_t>& residues)
      : window(w), x(from), y(to) {
    for (int64_t residue : residues) shift.push_back(residue - w.before[2]);
    for (int64_t z = 0; z < y.depth; ++z)
      for (int64_t r = 0; r < y.height; ++r) {
        const int64_t slice = inside(z * w.stride[0] + slice_shift, x.depth, w.mode);
        const int64_t row = inside(r * w.stride[1] + row_shift, x.height, w.mode);
        const bool shown = slice >= 0 && slice < x.depth && row >= 0 && row < x.height;
        rows.push_back(shown ? static_cast<int32_t>(slice * x.slice + row * x.row) : -1);
      }
  }

  void run(const float* from, float* to) const {
    const auto phases = static_cast<int64_t>(shift.size());
    plane_kernels().split(from, {rows.data(), x.width, window.stride[2], phases, shift.data(), y},
                          to);
    if (window.mode != PadMode::kZeros)
      for (int64_t p = 0; p < phases; ++p) pad(from, shift[p], to + p * y.plane);
  }

  // The columns that show others of x in place of zeros.
  void pad(const float* from, int64_t shift, float* to) const {
    const int32_t* row = rows.data();
    for (int64_t z = 0; z < y.depth; ++z)
      for (int64_t r = 0; r < y.height; ++r, ++row)
        for (int64_t j = 0; *row >= 0 && j < y.width; ++j) {
          const int64_t at = j * window.stride[2] + shift;
          const int64_t shown = inside(at, x.width, window.mode);
          if (at != shown && shown >= 0 && shown < x.width)
            to[z * y.slice + r * y.row + j] = from[*row + shown];
        }
  }
};

}  // namespace

// The image as one plane per channel and phase of the stride, with its padding written out.
void Builder::split(const Step& s, const Taps& taps) {
  const Planes x = value(s.x).planes, y = value(taps.source).planes;
  const Window& w = s.window;
  Phases phases[3];
  for (int d = 0; d < 3; ++d) phases[d] = phases_of(w, d);
  std::vector<Split> splits;  // per phase in depth and height
  for (int64_t slice : phases[0].residues)
    for (int64_t row : phases[1].residues)
      splits.emplace_back(w, x, y, slice - w.before[0], row - w.before[1], phases[2].residues);
  const auto columns = static_cast<int64_t>(phases[2].residues.size());
  const auto others = static_cast<int64_t>(splits.size());
  const Plan* plan = plan_.get();
  const int64_t planes = x.images * x.channels * others, n = parts(planes);
  work(n, {s.x}, taps.source, [=, from = s.x, out = taps.source](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      splits[plane % others].run(plan->at(call, from) + plane / others * x.plane + x.lead,
                                 plan->at(call, out) + plane * columns * y.plane + y.lead);
    });
  });
}

void Builder::cat(const Step& s) {
  const int64_t first = value(s.x).planes.channels, second = value(s.y).planes.channels;
  if (value(s.x).host != s.out) copy_planes(s.x, dealt(first, 1, 0, first), s.out, 0);
  if (value(s.y).host != s.out || s.y == s.x)
    copy_planes(s.y, dealt(second, 1, 0, second), s.out, first);
}

void Builder::channels(const Step& s) {
  if (value(s.out).host == s.x) return;
  copy_planes(s.x, dealt(value(s.x).planes.channels, s.groups, s.begin, s.count), s.out, 0);
}

// Channel from[i] of every image of x becomes channel first + i of out.
void Builder::copy_planes(int64_t x, std::vector<int64_t> from, int64_t out, int64_t first) {
  const Planes source = value(x).planes, y = value(out).planes;
  const Plan* plan = plan_.get();
  const auto count = static_cast<int64_t>(from.size());
  const int64_t planes = y.images * count, n = parts(planes);
  work(n, {x}, out, [=, from = std::move(from)](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / count, c = plane % count;
      float* to = plan->at(call, out) + y.at(image, first + c);
      std::copy_n(plan->at(call, x) + source.at(image, from[c]), y.lanes(), to);
      clear_margins(to - y.lead, y);
    });
  });
}

void Builder::flatten(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Plan* plan = plan_.get();
  const int64_t planes = x.images * x.channels, n = parts(planes);
  const int64_t size = x.depth * x.height * x.width;
  work(n, {s.x}, s.out, [=, from = s.x, to = s.out](const Call& call, int64_t i) {
    part(i, n, planes, [&](int64_t plane) {
      const int64_t image = plane / x.channels, channel = plane % x.channels;
      copy_rows(plan->at(call, from) + plane * x.plane + x.lead, x,
                plan->at(call, to) + image * y.image + channel * size);
    });
  });
}

void Builder::turn(const Step& s) {
  const Value x = value(s.x), y = value(s.out);
  const Plan* plan = plan_.get();
  const Value& tiles = x.rows_form ? y : x;
  const int64_t pitch = (x.rows_form ? x : y).planes.image;
  const int64_t tasks = tiles.planes.images * column_blocks(tiles);
  work(tasks, {s.x}, s.out, [=, from = s.x, to = s.out](const Call& call, int64_t i) {
    if (x.rows_form)
      rows_to_tiles(plan->at(call, from), pitch, y, i, plan->at(call, to));
    else
      tiles_to_rows(plan->at(call, from), x, i, plan->at(call, to), pitch);
  });
}

}  // namespace sparseprune
