// Works of linear layers over tokens whose weight is a bitmask, in slices, or stays dense.
#include <algorithm>

#include "kernels/cpu/bitmask_layers.h"
#include "kernels/cpu/sell_layers.h"
#include "kernels/cpu/table.h"
#include "program/build.h"

namespace sparseprune {
namespace {

constexpr int64_t kVector = 16;                // floats that parts of a row of outputs begin at
constexpr int64_t kPanelFloats = 8 * 1024;     // of a block of columns: it stays in L1
constexpr int64_t kSumsFloats = 64 * 1024;     // of a task: they stay in L2
constexpr int64_t kWeightFloats = 128 * 1024;  // of a task whose weights are read again
constexpr int64_t kPieceRows = 128;            // rows that are finished while still in L1

template <typename T>
const T* data(const Step& s, const std::vector<Weight>& weights, int64_t tensor) {
  return static_cast<const T*>(weights[s.tensors + tensor].data);
}

// The tensors of a step in the order of steps.py.
Bitmask bitmask_of(const Step& s, const std::vector<Weight>& weights) {
  return {data<float>(s, weights, 0), data<uint8_t>(s, weights, 1), data<int32_t>(s, weights, 2),
          s.rows, s.cols};
}
Sell sell_of(const Step& s, const std::vector<Weight>& weights) {
  return {data<float>(s, weights, 0),
          data<uint8_t>(s, weights, 1),
          data<uint16_t>(s, weights, 2),
          data<int32_t>(s, weights, 3),
          s.rows,
          s.cols};
}
DenseMatrix matrix_of(const Step& s, const std::vector<Weight>& weights) {
  return {data<float>(s, weights, 0), s.rows, s.cols};
}
const float* bias(const Step& s, const std::vector<Weight>& weights, int64_t tensor) {
  return s.has_bias ? data<float>(s, weights, tensor) : nullptr;
}

// What kernels that clamp leave undone: other activations, and a residual before any.
bool clamps(const Step& s) { return s.activation.kind == Activation::kClamp && s.y < 0; }
Clamp clamp(const Step& s) { return clamps(s) ? s.activation.clamp : Clamp{}; }

// The same for rows [begin, end) of every token, where they were just written.
void finish_rows(const Step& s, const Planes& y, const int32_t* live, int64_t begin, int64_t end,
                 const float* residual, float* out) {
  if (clamps(s) || begin == end) return;
  const int64_t lanes = (end - begin + kVector - 1) / kVector * kVector;
  plane_kernels().finish(out + begin, y.image, residual ? residual + begin : nullptr, live, lanes,
                         y.images, s.activation, out + begin, y.image);
}

Planes stream(int64_t lanes) {
  Planes p;
  p.width = p.row = p.slice = lanes;
  return p;
}

// [0, total) cut into parts, a multiple of `unit` each but for the last.
int64_t bound(int64_t i, int64_t parts, int64_t total, int64_t unit) {
  return std::min(i * ((total + unit - 1) / unit) / parts * unit, total);
}

}  // namespace

void Builder::bitmask(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Bitmask w = bitmask_of(s, weights_);
  plan_->multiply_adds += s.rows * s.cols * y.images;
  const int64_t n = std::min(w.units(), 2 * threads_);
  const Plan* plan = plan_.get();
  work(n, {s.x, s.y}, s.out,
       [=, step = s, bounds = cut_evenly(w, std::max<int64_t>(n, 1)),
        lives = live(stream(y.image))](const Call& call, int64_t i) {
         float* out = plan->at(call, step.out);
         bitmask_linear_kernel()(bitmask_of(step, call.weights), plan->at(call, step.x), x.images,
                                 x.image, bias(step, call.weights, 3), out, y.image, bounds[i],
                                 bounds[i + 1], clamp(step));
         finish_rows(step, y, lives->data(), std::min(bounds[i] * Bitmask::kRows, step.rows),
                     std::min(bounds[i + 1] * Bitmask::kRows, step.rows),
                     step.y >= 0 ? plan->at(call, step.y) : nullptr, out);
       });
}

void Builder::sell(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const Sell w = sell_of(s, weights_);
  plan_->multiply_adds += (w.starts[w.units()] - w.starts[0]) * Sell::kRows * y.images;
  const int64_t n = std::min(w.units(), threads_);  // each copies x once
  const Plan* plan = plan_.get();
  work(n, {s.x, s.y}, s.out,
       [=, step = s, bounds = cut_evenly(w, std::max<int64_t>(n, 1)),
        lives = live(stream(y.image))](const Call& call, int64_t i) {
         float* out = plan->at(call, step.out);
         sell_slices(sell_of(step, call.weights), plan->at(call, step.x), x.images, x.image,
                     bias(step, call.weights, 4), out, y.image, bounds[i], bounds[i + 1],
                     clamp(step));
         finish_rows(step, y, lives->data(), std::min(bounds[i] * Sell::kRows, step.rows),
                     std::min(bounds[i + 1] * Sell::kRows, step.rows),
                     step.y >= 0 ? plan->at(call, step.y) : nullptr, out);
       });
}

void Builder::linear(const Step& s) {
  plan_->multiply_adds += s.rows * s.cols * value(s.out).shape.images;
  return value(s.out).rows_form ? linear_dots(s) : linear_panels(s);
}

// Few tokens: weights are read once, as fast as memory gives them.
void Builder::linear_dots(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const int64_t units = (s.rows + kVector - 1) / kVector;
  // More than four tokens come back to the weights of a task, which then are still in L2.
  const int64_t passes = x.images > 4 ? s.rows * s.cols / kWeightFloats : 0;
  const int64_t n = std::min(std::max(parts(units), passes), units);
  const Plan* plan = plan_.get();
  work(n, {s.x, s.y}, s.out,
       [=, step = s, lives = live(stream(y.image))](const Call& call, int64_t i) {
         const int64_t begin = bound(i, n, step.rows, kVector);
         const int64_t end = bound(i + 1, n, step.rows, kVector);
         float* out = plan->at(call, step.out);
         dense_kernels().dots(matrix_of(step, call.weights), plan->at(call, step.x), x.images,
                              x.image, bias(step, call.weights, 1), out, y.image, begin, end,
                              clamp(step));
         finish_rows(step, y, lives->data(), begin, end,
                     step.y >= 0 ? plan->at(call, step.y) : nullptr, out);
       });
}

// Tiles of tokens are panels as they lie, and sums are made in the tiles of the output.
void Builder::linear_panels(const Step& s) {
  const Planes x = value(s.x).planes, y = value(s.out).planes;
  const int64_t lanes = y.plane, block = std::max<int64_t>(kPanelFloats / lanes, 1);
  const int64_t wanted = (parts(s.rows) + y.images - 1) / y.images;
  const int64_t chunks =
      std::min(std::max(wanted, (s.rows * lanes + kSumsFloats - 1) / kSumsFloats),
               (s.rows + kVector - 1) / kVector);
  const Plan* plan = plan_.get();
  work(y.images * chunks, {s.x, s.y}, s.out,
       [=, step = s, lives = live(stream(lanes))](const Call& call, int64_t i) {
         const int64_t tile = i / chunks, vectors = lanes / panel_kernels().width;
         const float* in = plan->at(call, step.x) + tile * x.image;
         const float* add = bias(step, call.weights, 1);
         const int64_t first = bound(i % chunks, chunks, step.rows, kVector);
         const int64_t last = bound(i % chunks + 1, chunks, step.rows, kVector);
         for (int64_t col = 0; col == 0 || col < step.cols; col += block) {
           const int64_t cols = std::min(block, step.cols - col);
           // A piece of rows at a time, so that its sums are still in L1 when they are finished.
           for (int64_t row = first; row < last; row += kPieceRows) {
             const int64_t end = std::min(row + kPieceRows, last);
             const int64_t at = tile * y.image + row * lanes;
             float* sums = plan->at(call, step.out) + at;
             for (int64_t r = row; col == 0 && r < end; ++r)
               std::fill_n(sums + (r - row) * lanes, lanes, add ? add[r] : 0.f);
             dense_kernels().panels(matrix_of(step, call.weights), col, cols, in + col * lanes,
                                    static_cast<int>(vectors), sums, row, end);
             if (col + cols == step.cols)
               plane_kernels().finish(
                   sums, lanes, step.y >= 0 ? plan->at(call, step.y) + at : nullptr, lives->data(),
                   lanes, end - row, step.activation, sums, lanes);
           }
         }
       });
}

}  // namespace sparseprune
