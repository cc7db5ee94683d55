// Works of a csr step: a linear layer over tokens, or a convolution over planes.
#include <stdexcept>
#include <type_traits>

#include "kernels/cpu/csr_tiles.h"
#include "program/build.h"
#include "program/edges.h"

namespace sparseprune {
namespace {

// Nonzeros of a column that do not repay packing it: fewer where a block spans more pages than a
// core finds at once.
constexpr int64_t kNearFloats = 48 * 1024, kFewUses[] = {128, 32};
constexpr int64_t kBehind = 16;  // floats that pack_runs may write behind a panel

// The tensors of a csr step in the order of steps.py.
enum { kValues, kColumns, kCounts, kStarts, kBias };

template <typename T>
const T* data(const Weight& w) {
  return static_cast<const T*>(w.data);
}

template <typename W>
W view(const Step& s, const std::vector<Weight>& weights) {
  const Weight* t = weights.data() + s.tensors;
  if constexpr (std::is_same_v<W, CsrRows>)
    return {data<float>(t[kValues]), data<uint16_t>(t[kColumns]), data<int32_t>(t[kStarts]), s.rows,
            s.cols};
  else {
    W w{data<float>(t[kValues]),
        data<uint8_t>(t[kColumns]),
        data<uint8_t>(t[kCounts]),
        data<int32_t>(t[kStarts]),
        s.rows,
        s.cols,
        s.block};
    if constexpr (std::is_same_v<W, CsrGroups>) w.cell = t[kCounts].last;
    return w;
  }
}

const float* bias(const Step& s, const std::vector<Weight>& weights) {
  return s.has_bias ? data<float>(weights[s.tensors + kBias]) : nullptr;
}

// Where the outputs of a tile lie in an input that they stride over.
std::vector<Run> runs_of(const Planes& x, const Planes& y, const Window& w, int64_t begin,
                         int64_t end) {
  std::vector<Run> runs;
  for (int64_t z = 0; z < y.depth; ++z)
    for (int64_t r = 0; r < y.height; ++r) {
      const int64_t at = z * y.slice + r * y.row;
      const int64_t first = std::max(at, begin), last = std::min(at + y.width, end);
      if (first < last)
        runs.push_back(
            {first - begin,
             z * w.stride[0] * x.slice + r * w.stride[1] * x.row + (first - at) * w.stride[2],
             last - first});
    }
  return runs;
}

// How a step reads its source.
struct Reading {
  std::vector<int32_t> offsets;        // per column
  std::vector<std::vector<Run>> runs;  // per tile; none: lanes lie as in the output
  Edges edges;                         // none where the source has zeros written around it
  int64_t pitch = 0;                   // from a column to the next, if they are not packed
};

std::vector<int32_t> offsets_of(const Step& s, const Taps& taps, const Planes& x) {
  std::vector<int32_t> offsets;
  const int64_t n_taps = s.window.taps();
  for (int64_t c = 0; c < s.cols / n_taps; ++c)
    for (int64_t t = 0; t < n_taps; ++t) {
      const int64_t phase = taps.source >= 0 ? taps.phase[t] : 0;
      const int64_t flat = taps.source >= 0 ? taps.flat[t] : 0;
      const int64_t at = (c * taps.phases + phase) * x.plane + flat;
      if (at > INT32_MAX) throw std::invalid_argument("run: inputs must be smaller images");
      offsets.push_back(static_cast<int32_t>(at));
    }
  return offsets;
}

// Of planes x, of which the step's own input is `given`; `used` columns have enough nonzeros to
// repay packing.
Reading reading_of(const Step& s, const Taps& taps, const Planes& x, const Planes& y,
                   const Tiling& tiling, bool given, bool used) {
  const Window& w = s.window;
  Reading r{offsets_of(s, taps, x), {}, {}, 0};
  if (given && w.stride[0] * w.stride[1] * w.stride[2] > 1)
    for (int64_t t = 0; t < tiling.tiles; ++t)
      r.runs.push_back(
          runs_of(x, y, w, tiling.first(t) * tiling.width, tiling.first(t + 1) * tiling.width));
  if (given) r.edges = Edges(w, x, y, s.cols / w.taps(), csr_kernels().max_vectors * tiling.width);
  const bool lines = w.taps() * taps.phases == 1 && r.runs.empty() && !r.offsets.empty() &&
                     r.offsets.front() % 16 == 0;
  const bool together = tiling.tiles == 1 && x.plane == y.lanes();
  if (lines && (together || !used)) r.pitch = x.plane;
  return r;
}

// What prepares an image for a csr step.
ChannelScale scale_of(const Step& s, const Plan& plan, const Call& call, int64_t image) {
  if (s.word == Word::kScale) {
    const Planes& by = plan.values[s.y].planes;
    return {plan.at(call, s.y) + by.at(image, 0), by.plane, nullptr, s.activation.clamp};
  }
  const Weight* tensors = call.weights.data() + s.tensors;
  return {data<float>(tensors[0]), 1, s.has_bias ? data<float>(tensors[1]) : nullptr,
          s.activation.clamp};
}

// A tile of the input's planes, to the same lanes of the output's.
struct PlanesIo {
  const PlaneKernels& kernels;
  const float* x;          // lane 0 of the tile in channel 0; of the plane, where there are runs
  const int32_t* offsets;  // per column
  Inside inside;
  int64_t group_floats;   // from the channels of a group to the next
  float* y;               // lane 0 of the tile in row 0
  const float* residual;  // the same, or null
  const int32_t* live;    // of the tile
  bool all_live;
  const Planes& planes;  // of y
  int64_t lanes;
  bool first, last;  // tile of its planes
  int64_t threads;
  int64_t pitch;  // from a column to the next where they are read in place, else 0
  bool direct_sums;
  const std::vector<Run>* runs;  // null: lanes lie as in the output
  int64_t stride;
  ChannelScale scale;  // no factor: none
  Activation activation;

  CsrPanel panel(int64_t group, int64_t begin, int64_t end) const {
    const float* from = x + group * group_floats;
    if (pitch) return in_place(from + offsets[begin], end - begin);
    float* to = panel_scratch((end - begin) * lanes + kBehind);
    if (scale.factor)
      kernels.pack_scaled(from, offsets + begin, end - begin, scale.from(begin), to, lanes);
    else if (runs)
      kernels.pack_runs(from, offsets + begin, end - begin, inside.from(begin), runs->data(),
                        static_cast<int64_t>(runs->size()), stride, to, lanes);
    else
      kernels.pack_streams(from, offsets + begin, end - begin, inside.from(begin), to, lanes);
    return {to, lanes};
  }
  CsrPanel in_place(const float* from, int64_t cols) const {
    if (threads > 1)  // much of it lies with other cores: all lines at once, not row by row
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t i = 0; i < lanes; i += 16) __builtin_prefetch(from + c * pitch + i);
    return {from, pitch};
  }
  float* sums(int64_t row, int64_t rows) const {
    if (direct_sums) return y + row * lanes;
    return sums_scratch(rows * lanes);
  }
  CsrEnds out(int64_t row) const {
    CsrEnds ends;
    if (activation.kind != Activation::kClamp) return ends;
    ends.y = y + row * planes.plane, ends.stride = planes.plane;
    ends.residual = at(residual, row), ends.live = all_live ? nullptr : live,
    ends.clamp = activation.clamp;
    return ends;
  }
  void store(int64_t row, int64_t rows, const float* sums) const {
    float* to = y + row * planes.plane;
    if (sums)
      kernels.finish(sums, lanes, at(residual, row), live, lanes, rows, activation, to,
                     planes.plane);
    const int64_t before = first ? planes.lead : 0, behind = last ? tail() : 0;
    if (before + behind == 0) return;
    for (int64_t r = 0; r < rows; ++r, to += planes.plane) {
      std::fill(to - before, to, 0.f);
      std::fill(to + lanes, to + lanes + behind, 0.f);
    }
  }
  const float* at(const float* values, int64_t row) const {
    return values ? values + row * planes.plane : nullptr;
  }
  int64_t tail() const { return planes.plane - planes.lead - planes.lanes(); }
};

}  // namespace

void Builder::csr(size_t step) {
  const Step& s = steps_[step];
  const Taps& taps = taps_[step];
  if (taps.source >= 0 && taps.source != s.x) split(s, taps);
  const int64_t last = weights_[s.tensors + kCounts].last;
  const Value& y = value(s.out);
  plan_->multiply_adds +=
      weights_[s.tensors].numel * y.planes.images * (y.rows_form ? 1 : y.planes.lanes());
  if (y.rows_form) return csr_gather(s);
  if (s.block == 0) return csr_panels<CsrRows>(step);
  if (last == CsrSorted::kPair) return csr_panels<CsrSorted>(step);
  return csr_panels<CsrGroups>(step);
}

template <typename W>
void Builder::csr_panels(size_t index) {
  const Step& s = steps_[index];
  const Taps& taps = taps_[index];
  const std::optional<Step>& before = before_[index];
  const int64_t source = taps.source >= 0 ? taps.source : s.x;
  const Planes x = value(source).planes, y = value(s.out).planes;
  const Tiling tiling = make_tiling(view<W>(s, weights_), s.groups, y.lanes(), y.images, threads_);
  const int64_t few = kFewUses[s.block * x.plane > kNearFloats] * s.cols * s.groups;
  const bool used = !std::is_same_v<W, CsrSorted> || weights_[s.tensors].numel >= few;
  Reading reading = reading_of(s, taps, x, y, tiling, source == s.x, used);
  if (before) reading.pitch = 0;  // it is done while packing
  const bool direct_sums = tiling.tiles == 1 && y.lead == 0 && y.plane == y.lanes() &&
                           s.rows % unit(view<W>(s, weights_)) == 0;
  const int64_t group_floats = s.cols / s.window.taps() * taps.phases * x.plane;
  // Sums are kept apart until they are stored, so they may replace the residual.
  if (!direct_sums && s.y != source) value(s.out).over = s.y;
  const Plan* plan = plan_.get();
  work(y.images * tiling.tasks(), {source, s.y, before ? before->y : -1}, s.out,
       [=, step = s, threads = threads_, scaled = before, lives = live(y),
        from = std::move(reading)](const Call& call, int64_t i) {
         const int64_t image = i / tiling.tasks(), task = i % tiling.tasks();
         const int64_t tile = task / tiling.n_chunks();
         const int64_t lane = tiling.first(tile) * tiling.width;
         const int64_t lanes = (tiling.first(tile + 1) - tiling.first(tile)) * tiling.width;
         const int64_t to = y.at(image, 0) + lane;
         PlanesIo io{plane_kernels(),
                     plan->at(call, source) + x.at(image, 0) + (from.runs.empty() ? lane : 0),
                     from.offsets.data(),
                     from.edges.inside(lane),
                     group_floats,
                     plan->at(call, step.out) + to,
                     step.y >= 0 ? plan->at(call, step.y) + to : nullptr,
                     lives->data() + lane,
                     lane + lanes <= y.filled(),
                     y,
                     lanes,
                     tile == 0,
                     tile == tiling.tiles - 1,
                     threads,
                     from.pitch,
                     direct_sums,
                     from.runs.empty() ? nullptr : &from.runs[tile],
                     step.window.stride[2],
                     scaled ? scale_of(*scaled, *plan, call, image) : ChannelScale{},
                     step.activation};
         run_tile(view<W>(step, call.weights), bias(step, call.weights), tiling, task, io);
       });
}

// Few tokens: x is gathered where it lies.
void Builder::csr_gather(const Step& s) {
  const CsrRows w = view<CsrRows>(s, weights_);
  std::vector<int64_t> chunks{0};
  cut_evenly(w, 0, w.rows, threads_, chunks);
  const bool clamps = s.activation.kind == Activation::kClamp && s.y < 0;
  const int64_t tokens = value(s.x).shape.images;
  const int64_t x_stride = value(s.x).planes.image, y_stride = value(s.out).planes.image;
  const Plan* plan = plan_.get();
  work(threads_, {s.x}, s.out, [=, step = s](const Call& call, int64_t i) {
    csr_gather_kernel()(view<CsrRows>(step, call.weights), plan->at(call, step.x), tokens, x_stride,
                        bias(step, call.weights), plan->at(call, step.out), y_stride, chunks[i],
                        chunks[i + 1], clamps ? step.activation.clamp : Clamp{});
  });
  if (clamps) return;
  Step rest = s;
  rest.x = s.out;
  add(rest);
}

}  // namespace sparseprune
