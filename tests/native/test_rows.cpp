// Kernels that move rows of planes, against loops.
#include "planes_check.h"

namespace {

Planes any_geometry(Random& random) {
  Planes p;
  p.images = p.channels = 1;
  p.depth = random.integer(1, 3), p.height = random.integer(1, 5);
  p.width = random.integer(1, 40);
  p.row = p.width + random.integer(0, 3);
  p.slice = (p.height + random.integer(0, 2)) * p.row;
  p.lead = 16 * random.integer(0, 2);
  p.plane = p.lead + (p.flat() + random.integer(0, 40) + 15) / 16 * 16;
  return p;
}

// A plane spread in two calls holds every element, and zeros elsewhere.
void check_spread(Against against, Random& random) {
  const Planes p = any_geometry(random);
  name("spread", p.width, p.height);
  const int64_t rows = p.depth * p.height, cut = random.integer(0, rows);
  const Guarded x(random.normals(rows * p.width), against);
  const Guarded<float> y(std::vector<float>(static_cast<size_t>(p.plane), kNan), against);
  plane_kernels().spread(x.read_only(), p, 0, cut, y.data() + p.lead);
  plane_kernels().spread(x.read_only(), p, cut, rows, y.data() + p.lead);
  std::vector<double> expected(static_cast<size_t>(p.plane));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < p.width; ++j)
      expected[p.lead + i / p.height * p.slice + i % p.height * p.row + j] = x[i * p.width + j];
  expect_all(y, expected, std::vector<double>(expected.size()));
}

// The lanes of runs show what they say; those between them may hold anything.
void check_runs(int64_t lanes, int64_t stride, Against against, Random& random) {
  name("pack_runs", lanes, stride);
  constexpr int64_t kReads = 32, kWrites = 16;  // that kernels may touch behind
  std::vector<Run> runs;
  int64_t furthest = 0;
  for (int64_t lane = random.integer(0, 3); lane < lanes; lane += runs.back().count + 1) {
    const int64_t count = std::min(lanes - lane, random.integer(1, 40));
    runs.push_back({lane, random.integer(0, 50), count});
    furthest = std::max(furthest, runs.back().from + stride * (count - 1) + 1);
  }
  const int64_t cols = random.integer(1, 20), most = 100;
  std::vector<int32_t> offsets;
  for (int64_t c = 0; c < cols; ++c)
    offsets.push_back(static_cast<int32_t>(random.integer(0, most)));
  offsets[0] = most;
  const Guarded x(random.normals(most + furthest + kReads), against);
  const Guarded at(offsets, against);
  const Guarded run(runs, against);
  const Guarded<float> panel(std::vector<float>(static_cast<size_t>(cols * lanes + kWrites)),
                             against);
  // Every other column has lanes outside of its image.
  std::vector<int32_t> masks(static_cast<size_t>(lanes + kWrites + 3)), of;
  for (int32_t& m : masks) m = random.share() < .8 ? -1 : 0;
  for (int64_t c = 0; c < cols; ++c)
    of.push_back(c % 2 ? -1 : static_cast<int32_t>(random.integer(0, 3)));
  const Guarded mask(masks, against);
  const Guarded begins(of, against);
  const bool all = random.share() < .3;
  plane_kernels().pack_runs(x.read_only(), at.read_only(), cols,
                            {all ? nullptr : begins.read_only(), mask.read_only()}, run.read_only(),
                            static_cast<int64_t>(runs.size()), stride, panel.data(), lanes);
  expect(panel.surroundings_intact(), "wrote outside the panel");
  for (int64_t c = 0; c < cols; ++c)
    for (const Run& r : runs)
      for (int64_t i = 0; i < r.count; ++i) {
        const bool inside = all || of[c] < 0 || masks[of[c] + r.lane + i];
        if (panel[c * lanes + r.lane + i] != (inside ? x[offsets[c] + r.from + stride * i] : 0.f))
          return expect(false,
                        "column " + std::to_string(c) + ", lane " + std::to_string(r.lane + i));
      }
  expect(true, "");
}

}  // namespace

void check_rows(int64_t count, Random& random) {
  for (const Against against : {Against::low_page, Against::high_page})
    for (int64_t i = 0; i < count; ++i) {
      check_spread(against, random);
      for (const int64_t lanes : {16, 48, 64})
        for (const int64_t stride : {1, 2}) check_runs(lanes, stride, against, random);
    }
}
