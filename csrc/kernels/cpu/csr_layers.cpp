#include "kernels/cpu/csr_layers.h"

#include "kernels/cpu/csr_tiles.h"

namespace sparseprune {
namespace {

constexpr int64_t kSerialGather = 1 << 13;  // the same where each of them is a gather
constexpr int64_t kSerialWork = 1 << 16;    // multiply-adds below which one thread is faster

// Transposes x into panels and sums into y.
struct LinearIo {
  const PanelKernels& kernels;
  const float* x;
  int64_t cols;
  float* y;
  int64_t rows, tokens, lanes;
  Clamp clamp;

  CsrPanel panel(int64_t, int64_t begin, int64_t end) const {
    float* to = panel_scratch((end - begin) * lanes);
    kernels.pack_tokens(x, cols, tokens, begin, end, to, lanes);
    return {to, lanes};
  }
  float* sums(int64_t, int64_t count) const { return sums_scratch(count * lanes); }
  CsrEnds out(int64_t) const { return {}; }  // tokens lie the other way round
  void store(int64_t row, int64_t count, const float* acc) const {
    kernels.store_tokens(acc, lanes, count, tokens, y + row, rows, clamp);
  }
};

template <typename W>
void linear_panels(const W& w, const float* x, int64_t tokens, const float* bias, float* y,
                   const Threads& threads, Clamp clamp) {
  const bool small = nonzeros_before(w, units(w)) * tokens < kSerialWork;
  const Tiling tiling = make_tiling(w, 1, tokens, 1, small ? 1 : threads.count);
  const auto task = [&](int64_t i) {
    const int64_t tile = i / tiling.n_chunks(), first = tiling.first(tile) * tiling.width;
    const int64_t lanes = tiling.first(tile + 1) * tiling.width - first;
    LinearIo io{panel_kernels(), x + first * w.cols,
                w.cols,          y + first * w.rows,
                w.rows,          std::min(lanes, tokens - first),
                lanes,           clamp};
    run_tile(w, bias, tiling, i, io);
  };
  if (small)
    for (int64_t i = 0; i < tiling.tasks(); ++i) task(i);
  else
    threads.run(tiling.tasks(), task);
}

}  // namespace

void csr_linear(const CsrRows& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  if (tokens > kGatherTokens) return linear_panels(w, x, tokens, bias, y, threads, clamp);
  const bool small = nonzeros_before(w, w.rows) * tokens < kSerialGather;
  std::vector<int64_t> chunks{0};
  cut_evenly(w, 0, w.rows, small ? 1 : threads.count, chunks);
  const auto task = [&](int64_t i) {
    csr_gather_kernel()(w, x, tokens, w.cols, bias, y, w.rows, chunks[i], chunks[i + 1], clamp);
  };
  if (small)
    task(0);
  else
    threads.run(threads.count, task);
}

void csr_linear(const CsrGroups& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  linear_panels(w, x, tokens, bias, y, threads, clamp);
}

void csr_linear(const CsrSorted& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  linear_panels(w, x, tokens, bias, y, threads, clamp);
}

}  // namespace sparseprune
