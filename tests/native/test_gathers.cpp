// Both ways in which csr/rows reads x for few tokens, whichever this CPU takes.
#include "check.h"
#include "kernels/cpu/table.h"
#include "pack.h"

using namespace sparseprune;

namespace {

Expected reference(const Dense& w, const std::vector<float>& x, int64_t tokens,
                   const std::vector<float>& bias) {
  Expected expected;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < w.rows; ++r) {
      double sum = bias[static_cast<size_t>(r)], scale = std::abs(sum);
      for (int64_t c = 0; c < w.cols; ++c) {
        const double product = double{w.at(r, c)} * x[static_cast<size_t>(t * w.cols + c)];
        sum += product, scale += std::abs(product);
      }
      expected.y.push_back(sum), expected.scale.push_back(scale);
    }
  return expected;
}

}  // namespace

void check_gathers(int64_t count, Random& random) {
  for (int64_t i = 0; i < count; ++i) {
    const Dense dense = random.dense(random.integer(1, 40), random.integer(1, 300));
    const int64_t tokens = random.integer(1, 9);
    const std::vector<float> x = random.normals(tokens * dense.cols);
    const std::vector<float> bias = random.normals(dense.rows);
    const Expected expected = reference(dense, x, tokens, bias);
    const Packed p = pack_rows(dense);
    for (const Against against : {Against::low_page, Against::high_page}) {
      const Guarded values(p.values, against);
      const Guarded columns(p.wide_columns, against);
      const Guarded starts(p.starts, against);
      const Guarded input(x, against), biases(bias, against);
      const CsrRows w{values.read_only(), columns.read_only(), starts.read_only(), dense.rows,
                      dense.cols};
      const CsrKernels& k = csr_kernels();
      for (const CsrKernels::Gather gather : {k.gather, k.gather_by_inserts}) {
        std::snprintf(running, sizeof running, "%s gather %s %dx%d, %d tokens",
                      isa_name(current_isa()), gather == k.gather ? "at once" : "by inserts",
                      static_cast<int>(dense.rows), static_cast<int>(dense.cols),
                      static_cast<int>(tokens));
        const Guarded<float> y(std::vector<float>(expected.y.size()), against);
        gather(w, input.read_only(), tokens, dense.cols, biases.read_only(), y.data(), dense.rows,
               0, dense.rows, {});
        compare(y, expected);
      }
    }
  }
}
