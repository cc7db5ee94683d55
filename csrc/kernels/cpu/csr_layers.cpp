#include "kernels/cpu/csr_layers.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/table.h"

namespace sparseprune {
namespace {

constexpr int64_t kGatherTokens = 4;        // up to here gathering x beats making a panel
constexpr int64_t kSerialGather = 1 << 13;  // the same where each of them is a gather
constexpr int64_t kSerialWork = 1 << 16;    // multiply-adds below which one thread is faster
constexpr int64_t kAccFloats = 64 * 1024;   // a task's accumulators stay in L2
constexpr int64_t kPieceRows = 128;         // rows whose sums are stored while still in L1
constexpr int kMaxLanes = 64;

// What the loops below need to know of a layout: rows come in units, columns in blocks.
int64_t unit(const CsrRows&) { return 1; }
int64_t unit(const CsrGroups&) { return CsrGroups::kRows; }
int64_t unit(const CsrSorted&) { return CsrSorted::kRows; }
int64_t block_cols(const CsrRows& w) { return w.cols; }
int64_t block_cols(const CsrGroups& w) { return w.block; }
int64_t block_cols(const CsrSorted& w) { return w.block; }

// Nonzeros in the rows before unit u.
int64_t nonzeros_before(const CsrRows& w, int64_t u) { return w.row_start[u]; }
int64_t nonzeros_before(const CsrGroups& w, int64_t u) {
  int64_t sum = 0;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* cell = w.starts + 2 * b * w.groups();
    sum += cell[2 * u] - cell[0];  // starts ends with the totals, so u == groups() is a cell too
  }
  return sum;
}

int64_t nonzeros_before(const CsrSorted& w, int64_t u) {
  int64_t sum = 0;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* cell = w.starts + b * w.segments();
    sum += cell[u] - cell[0];
  }
  return sum;
}

void multiply(const CsrRows& w, int64_t, const float* panel, int vectors, float* acc, int64_t begin,
              int64_t end) {
  csr_kernels().rows(w, panel, vectors, acc, begin, end);
}
void multiply(const CsrGroups& w, int64_t block, const float* panel, int vectors, float* acc,
              int64_t begin, int64_t end) {
  csr_kernels().groups(w, block, panel, vectors, acc, begin, end);
}

void multiply(const CsrSorted& w, int64_t block, const float* panel, int vectors, float* acc,
              int64_t begin, int64_t end) {
  csr_kernels().sorted(w, block, panel, vectors, acc, begin, end);
}

// Units [begin, end) cut into `parts` with about equal nonzeros; parts + 1 bounds.
template <typename W>
void cut_evenly(const W& w, int64_t begin, int64_t end, int64_t parts,
                std::vector<int64_t>& bounds) {
  const int64_t first = nonzeros_before(w, begin);
  const int64_t total = nonzeros_before(w, end) - first;
  for (int64_t p = 1; p <= parts; ++p) {
    const int64_t wanted = first + total * p / parts;
    int64_t low = bounds.back(), high = end;
    while (low < high) {  // first unit with at least `wanted` nonzeros before it
      const int64_t middle = (low + high) / 2;
      if (nonzeros_before(w, middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    bounds.push_back(p == parts ? end : low);
  }
}

template <typename W>
std::vector<int64_t> row_chunks(const W& w, int64_t conv_groups, int64_t tiles, int64_t lanes,
                                int64_t threads) {
  const int64_t units = (w.rows + unit(w) - 1) / unit(w), per_group = units / conv_groups;
  int64_t parts = std::max(threads / std::gcd(tiles, threads) / conv_groups,
                           (per_group * unit(w) * lanes + kAccFloats - 1) / kAccFloats);
  parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(per_group, 1));
  std::vector<int64_t> bounds{0};
  for (int64_t g = 0; g < conv_groups; ++g)
    cut_evenly(w, g * per_group, (g + 1) * per_group, parts, bounds);
  return bounds;
}

// Every tile of tokens times every chunk of rows. make_io(first, tokens, lanes) gives an object
// that packs columns of its tile into a panel and stores rows of its accumulators.
template <typename W, typename MakeIo>
void run_tiles(const W& w, const float* bias, int64_t tokens, int64_t conv_groups,
               const Threads& threads, const MakeIo& make_io) {
  const PanelKernels& kernels = panel_kernels();
  const int64_t vectors = (tokens + kernels.width - 1) / kernels.width;
  const int64_t tiles = (vectors + kernels.max_vectors - 1) / kernels.max_vectors;
  const int64_t units = (w.rows + unit(w) - 1) / unit(w);
  const int64_t piece = kPieceRows / unit(w);
  const bool small = nonzeros_before(w, units) * tokens < kSerialWork;
  const std::vector<int64_t> chunks = row_chunks(
      w, conv_groups, tiles, kernels.max_vectors * kernels.width, small ? 1 : threads.count);
  const int64_t n_chunks = static_cast<int64_t>(chunks.size()) - 1;

  const auto task = [&](int64_t i) {
    static thread_local Scratch panel_memory, acc_memory;
    const int64_t tile = i / n_chunks, chunk = i % n_chunks;
    const int64_t first = tile * vectors / tiles, last = (tile + 1) * vectors / tiles;
    const int64_t lanes = (last - first) * kernels.width;
    const int64_t begin = chunks[chunk], end = chunks[chunk + 1];
    const int64_t row = begin * unit(w), rows = std::min(end * unit(w), w.rows) - row;
    if (rows <= 0) return;
    auto io =
        make_io(first * kernels.width, std::min(lanes, tokens - first * kernels.width), lanes);
    float* panel = panel_memory.take(block_cols(w) * lanes);
    float* acc = acc_memory.take((end - begin) * unit(w) * lanes);
    for (int64_t block = 0, col = 0; block == 0 || col < w.cols; ++block, col += block_cols(w)) {
      const int64_t last_col = std::min(col + block_cols(w), w.cols);
      io.pack(chunk * conv_groups / n_chunks, col, last_col, panel);
      // A piece of rows at a time, so that its sums are still in L1 when they are stored.
      for (int64_t u = begin; u < end; u += piece) {
        const int64_t stop = std::min(u + piece, end), first_row = u * unit(w);
        const int64_t count = std::min(stop * unit(w), w.rows) - first_row;
        float* sums = acc + (first_row - row) * lanes;
        if (col == 0) kernels.fill(bias ? bias + first_row : nullptr, count, sums, lanes);
        if (w.cols) multiply(w, block, panel, static_cast<int>(last - first), sums, u, stop);
        if (last_col == w.cols) io.store(first_row, count, sums);
      }
    }
  };
  if (small)
    for (int64_t i = 0; i < tiles * n_chunks; ++i) task(i);
  else
    threads.run(tiles * n_chunks, task);
}

struct LinearIo {
  const PanelKernels& kernels;
  const float* x;
  int64_t cols;
  float* y;
  int64_t rows, tokens, lanes;
  Clamp clamp;

  void pack(int64_t, int64_t begin, int64_t end, float* panel) const {
    kernels.pack_tokens(x, cols, tokens, begin, end, panel, lanes);
  }
  void store(int64_t row, int64_t count, const float* acc) const {
    kernels.store_tokens(acc, lanes, count, tokens, y + row, rows, clamp);
  }
};

template <typename W>
void linear_panels(const W& w, const float* x, int64_t tokens, const float* bias, float* y,
                   const Threads& threads, Clamp clamp) {
  run_tiles(w, bias, tokens, 1, threads, [&](int64_t first, int64_t count, int64_t lanes) {
    return LinearIo{panel_kernels(), x + first * w.cols,
                    w.cols,          y + first * w.rows,
                    w.rows,          count,
                    lanes,           clamp};
  });
}

// The convolution's input with its padding written out, and where each column of W reads in it.
struct Window {
  Conv2dShape shape;
  const float* x;  // [batch, channels, height, width], padding included
  std::vector<int32_t> offsets;

  Window(const Conv2dShape& s, const float* source, const Threads& threads) : shape(s), x(source) {
    shape.height += 2 * s.padding_h, shape.width += 2 * s.padding_w;
    shape.padding_h = shape.padding_w = 0;
    if (s.padding_h || s.padding_w) x = pad(s, source, threads);
    offsets.reserve(s.channels / s.groups * s.kernel_h * s.kernel_w);
    for (int64_t c = 0; c < s.channels / s.groups; ++c)
      for (int64_t i = 0; i < s.kernel_h; ++i)
        for (int64_t j = 0; j < s.kernel_w; ++j)
          offsets.push_back(static_cast<int32_t>(
              (c * shape.height + i * s.dilation_h) * shape.width + j * s.dilation_w));
  }

  const float* pad(const Conv2dShape& s, const float* source, const Threads& threads) const {
    static thread_local Scratch memory;
    const int64_t plane = shape.height * shape.width, planes = s.batch * s.channels;
    float* padded = memory.take(planes * plane);
    const auto task = [&](int64_t p) {
      float* to = padded + p * plane;
      std::fill_n(to, s.padding_h * shape.width, 0.f);
      to += s.padding_h * shape.width;
      for (int64_t i = 0; i < s.height; ++i, to += shape.width) {
        std::fill_n(to, s.padding_w, 0.f);
        std::copy_n(source + (p * s.height + i) * s.width, s.width, to + s.padding_w);
        std::fill_n(to + s.padding_w + s.width, s.padding_w, 0.f);
      }
      std::fill_n(to, s.padding_h * shape.width, 0.f);
    };
    if (planes * plane < kSerialWork)
      for (int64_t p = 0; p < planes; ++p) task(p);
    else
      threads.run(planes, task);
    return padded;
  }
};

struct ConvIo {
  const PanelKernels& kernels;
  const Window& window;
  float* y;
  int64_t lanes;
  Clamp clamp;
  Run runs[kMaxLanes];
  int64_t n_runs = 0;

  // Output pixels [first, first + count), counted over the whole batch.
  ConvIo(const Window& w, float* out, int64_t first, int64_t count, int64_t tile_lanes, Clamp c)
      : kernels(panel_kernels()), window(w), y(out), lanes(tile_lanes), clamp(c) {
    const Conv2dShape& s = w.shape;
    const int64_t width = s.out_width(), pixels = s.out_height() * width;
    for (int64_t lane = 0; lane < count;) {
      const int64_t image = (first + lane) / pixels, pixel = (first + lane) % pixels;
      const int64_t row = pixel / width, col = pixel % width;
      const int64_t length = std::min(width - col, count - lane);
      add({lane, length,
           (image * s.channels * s.height + row * s.stride_h) * s.width + col * s.stride_w,
           image * s.rows * pixels + pixel});
      lane += length;
    }
  }

  // Joins what continues the run before it both in the source and in the output.
  void add(const Run& run) {
    if (n_runs) {
      Run& last = runs[n_runs - 1];
      if (last.source + last.length * window.shape.stride_w == run.source &&
          last.output + last.length == run.output) {
        last.length += run.length;
        return;
      }
    }
    runs[n_runs++] = run;
  }

  void pack(int64_t group, int64_t begin, int64_t end, float* panel) const {
    const Conv2dShape& s = window.shape;
    const float* source = window.x + group * (s.channels / s.groups) * s.height * s.width;
    kernels.pack_runs(source, window.offsets.data() + begin, end - begin, runs, n_runs, s.stride_w,
                      panel, lanes);
  }
  void store(int64_t row, int64_t count, const float* acc) const {
    const int64_t pixels = window.shape.out_height() * window.shape.out_width();
    kernels.store_runs(acc, lanes, count, runs, n_runs, y + row * pixels, pixels, clamp);
  }
};

}  // namespace

void csr_linear(const CsrRows& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  if (tokens > kGatherTokens) return linear_panels(w, x, tokens, bias, y, threads, clamp);
  const bool small = nonzeros_before(w, w.rows) * tokens < kSerialGather;
  std::vector<int64_t> chunks{0};
  cut_evenly(w, 0, w.rows, small ? 1 : threads.count, chunks);
  const auto task = [&](int64_t i) {
    csr_kernels().gather(w, x, tokens, w.cols, bias, y, w.rows, chunks[i], chunks[i + 1], clamp);
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

template <typename W>
void csr_conv2d(const W& w, const float* x, const Conv2dShape& shape, const float* bias, float* y,
                const Threads& threads, Clamp clamp) {
  const Window window(shape, x, threads);
  run_tiles(w, bias, shape.batch * shape.out_height() * shape.out_width(), shape.groups, threads,
            [&](int64_t first, int64_t count, int64_t lanes) {
              return ConvIo(window, y, first, count, lanes, clamp);
            });
}

template void csr_conv2d(const CsrRows&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);
template void csr_conv2d(const CsrGroups&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);
template void csr_conv2d(const CsrSorted&, const float*, const Conv2dShape&, const float*, float*,
                         const Threads&, Clamp);

}  // namespace sparseprune
