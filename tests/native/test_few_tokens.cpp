// All ways in which csr/rows and bitmask read for few tokens, whichever this CPU takes.
#include "check.h"
#include "kernels/cpu/table.h"
#include "pack.h"

using namespace sparseprune;

namespace {

struct Problem {
  Dense w;
  int64_t tokens;
  std::vector<float> x, bias;
  Expected expected;
};

Problem problem(Random& random) {
  Problem p{random.dense(random.integer(1, 140), random.integer(1, 300)),
            random.integer(1, 9),
            {},
            {},
            {}};
  p.x = random.normals(p.tokens * p.w.cols);
  p.bias = random.normals(p.w.rows);
  for (int64_t t = 0; t < p.tokens; ++t)
    for (int64_t r = 0; r < p.w.rows; ++r) {
      double sum = p.bias[static_cast<size_t>(r)], scale = std::abs(sum);
      for (int64_t c = 0; c < p.w.cols; ++c) {
        const double product = double{p.w.at(r, c)} * p.x[static_cast<size_t>(t * p.w.cols + c)];
        sum += product, scale += std::abs(product);
      }
      p.expected.y.push_back(sum), p.expected.scale.push_back(scale);
    }
  return p;
}

// Runs kernel(x, bias, y) between guard pages.
template <typename Kernel>
void check(const Problem& p, const char* name, Against against, const Kernel& kernel) {
  std::snprintf(running, sizeof running, "%s %s %dx%d, %d tokens", isa_name(current_isa()), name,
                static_cast<int>(p.w.rows), static_cast<int>(p.w.cols), static_cast<int>(p.tokens));
  const Guarded x(p.x, against), bias(p.bias, against);
  const Guarded<float> y(std::vector<float>(p.expected.y.size()), against);
  kernel(x.read_only(), bias.read_only(), y.data());
  compare(y, p.expected);
}

void check_gathers(const Problem& p, Against against) {
  const Packed packed = pack_rows(p.w);
  const Guarded values(packed.values, against);
  const Guarded columns(packed.wide_columns, against);
  const Guarded starts(packed.starts, against);
  const CsrRows w{values.read_only(), columns.read_only(), starts.read_only(), p.w.rows, p.w.cols};
  const CsrKernels& k = csr_kernels();
  for (const CsrKernels::Gather gather : {k.gather, k.gather_by_inserts})
    check(p, gather == k.gather ? "gather at once" : "gather by inserts", against,
          [&](const float* x, const float* bias, float* y) {
            gather(w, x, p.tokens, w.cols, bias, y, w.rows, 0, w.rows, {});
          });
}

void check_expands(const Problem& p, Against against) {
  const Packed packed = pack_bitmask(p.w);
  const Guarded values(packed.values, against);
  const Guarded masks(packed.masks, against);
  const Guarded starts(packed.starts, against);
  const Bitmask w{values.read_only(), masks.read_only(), starts.read_only(), p.w.rows, p.w.cols};
  const BitmaskKernels& k = bitmask_kernels();
  for (const BitmaskKernels::Linear linear : {k.linear, k.linear_by_counts})
    if (linear && (linear == k.linear || counts_bits()))
      check(p, linear == k.linear ? "expand at once" : "expand by counts", against,
            [&](const float* x, const float* bias, float* y) {
              linear(w, x, p.tokens, w.cols, bias, y, w.rows, 0, w.units(), {});
            });
}

}  // namespace

void check_few_tokens(int64_t count, Random& random) {
  for (int64_t i = 0; i < count; ++i) {
    const Problem p = problem(random);
    for (const Against against : {Against::low_page, Against::high_page}) {
      check_gathers(p, against);
      check_expands(p, against);
    }
  }
}
