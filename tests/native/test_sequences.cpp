// Kernels on the tokens of sequences, against loops in double.
#include <memory>

#include "planes_check.h"

namespace {

constexpr int64_t kWidth = 16;  // lanes that kernels may be given at a time

// Tokens as columns of planes, as wide as a tile.
void check_normalise(Against against, Random& random) {
  const int64_t channels = random.pick({1, 2, 31, 32, 33, 70, random.integer(1, 200)});
  const int64_t lanes = kWidth * random.integer(1, 5),
                plane = lanes + kWidth * random.integer(0, 2);
  name("normalise", channels, lanes);
  const bool centred = random.integer(0, 3) > 0, has_bias = random.integer(0, 1) == 1;
  const float epsilon = 1e-5f, far = centred && random.integer(0, 1) ? 50.f : 0.f;
  std::vector<float> x = random.normals(channels * plane);
  for (float& v : x) v += far;
  const Guarded in(x, against), weight(random.normals(channels), against);
  const Guarded bias(random.normals(channels), against);
  const Norm norm{channels, epsilon, centred, weight.read_only(),
                  has_bias ? bias.read_only() : nullptr};
  const Guarded<float> y(std::vector<float>(x.size(), 7.f), against);
  plane_kernels().normalise(norm, in.read_only(), plane, lanes, y.data());
  std::vector<double> expected(x.size(), 7.), scale(x.size());
  for (int64_t i = 0; i < lanes; ++i) {
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < channels && centred; ++c) mean += x[c * plane + i];
    mean /= static_cast<double>(channels);
    for (int64_t c = 0; c < channels; ++c) squares += std::pow(x[c * plane + i] - mean, 2);
    const double root = std::sqrt(squares / static_cast<double>(channels) + epsilon);
    std::vector<float> token;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * plane + i;
      expected[at] = (x[at] - mean) / root * weight[c] + (has_bias ? bias[c] : 0.);
      // The mean is rounded as x is: that may be much of a small difference.
      scale[at] = 3e-6 * (1 + std::abs(weight[c]) * (1 + (far + std::abs(x[at])) / root));
      token.push_back(x[at]);
    }
    const Guarded alone(token, against);
    const Guarded<float> row(std::vector<float>(token.size()), against);
    plane_kernels().normalise_row(norm, alone.read_only(), row.data());
    for (int64_t c = 0; c < channels; ++c)
      expect(near(row[c], expected[c * plane + i], scale[c * plane + i]), "of one token");
    expect(row.surroundings_intact(), "wrote outside the token");
  }
  expect_all(y, expected, scale);
}

struct Sequence {
  int64_t keys, first_query, queries, head;
  float scale;
  bool causal;
  std::vector<float> mask;  // [keys, queries]
};

// The outputs [channels, queries] of queries [channels, queries], keys and values [channels, keys].
std::vector<double> attention(const Sequence& s, const std::vector<float>& q,
                              const std::vector<float>& k, const std::vector<float>& v) {
  std::vector<double> out(static_cast<size_t>(s.head * s.queries));
  for (int64_t i = 0; i < s.queries; ++i) {
    const int64_t seen = s.causal ? std::min(s.keys, s.first_query + i + 1) : s.keys;
    std::vector<double> weights;
    double most = -kInf, total = 0;
    for (int64_t j = 0; j < seen; ++j) {
      double score = 0;
      for (int64_t c = 0; c < s.head; ++c)
        score += double{q[c * s.queries + i]} * k[c * s.keys + j];
      weights.push_back(score * s.scale + (s.mask.empty() ? 0. : s.mask[j * s.queries + i]));
      most = std::max(most, weights.back());
    }
    if (most == -kInf) continue;
    for (double& w : weights) total += w = std::exp(w - most);
    for (int64_t c = 0; c < s.head; ++c)
      for (int64_t j = 0; j < seen; ++j)
        out[c * s.queries + i] += weights[j] / total * v[c * s.keys + j];
  }
  return out;
}

// Keys in tiles of any size, each an array of its own between guard pages.
void check_attend(Against against, Random& random) {
  const int64_t tile = panel_kernels().width * panel_kernels().max_vectors;
  Sequence s{random.pick({1, 2, 17, 64, random.integer(1, 150)}),
             random.integer(0, 20),
             random.integer(1, tile),
             random.pick({1, 3, 8, 13, 32, 64}),
             .3f,
             random.integer(0, 1) == 1,
             {}};
  const float lowest = random.integer(0, 1) ? -kInf : -std::numeric_limits<float>::max();
  if (random.integer(0, 1)) s.mask = random.normals(s.keys * s.queries);
  for (size_t i = 0; i < s.mask.size(); ++i)
    if (random.integer(0, 2) == 0 || i % s.queries == 0) s.mask[i] = lowest;
  name("attend", s.keys, s.queries);
  const std::vector<float> q = random.normals(s.head * s.queries),
                           k = random.normals(s.head * s.keys), v = random.normals(s.head * s.keys);
  std::vector<std::unique_ptr<Guarded<float>>> arrays;
  std::vector<Keys> tiles;
  for (int64_t first = 0, count; first < s.keys; first += count) {
    count = std::min(random.integer(1, tile), s.keys - first);
    for (const auto* from : {&k, &v}) {
      std::vector<float> part;
      for (int64_t c = 0; c < s.head; ++c)
        part.insert(part.end(), from->begin() + c * s.keys + first,
                    from->begin() + c * s.keys + first + count);
      arrays.push_back(std::make_unique<Guarded<float>>(part, against));
    }
    tiles.push_back(
        {arrays.end()[-2]->read_only(), count, arrays.back()->read_only(), count, count, first});
  }
  const Guarded in(q, against), mask(s.mask, against);
  const Guarded<float> y(std::vector<float>(q.size()), against);
  const Guarded<float> scratch(std::vector<float>(static_cast<size_t>((2 * s.head + tile) * tile)),
                               Against::low_page);
  plane_kernels().attend(
      {in.read_only(), s.queries, s.queries, s.first_query, y.data(), s.queries}, tiles.data(),
      static_cast<int64_t>(tiles.size()),
      {s.head, s.scale, s.causal, s.mask.empty() ? nullptr : mask.read_only(), s.queries},
      scratch.data());
  expect(scratch.surroundings_intact(), "wrote outside the scratch");
  const std::vector<double> expected = attention(s, q, k, v);
  expect_all(y, expected, std::vector<double>(expected.size(), 2e-5));
}

void check_rotate(Against against, Random& random) {
  const int64_t turned = 2 * random.integer(1, 20), size = turned + random.pick({0, 1, 5});
  const int64_t lanes = kWidth * random.integer(1, 5),
                plane = lanes + kWidth * random.integer(0, 2);
  const bool pairs = random.integer(0, 1) == 1;
  name("rotate", size, lanes);
  const std::vector<float> x = random.normals(size * plane);
  const Guarded in(x, against), cos(random.normals(turned * lanes), against),
      sin(random.normals(turned * lanes), against);
  const Guarded<float> y(std::vector<float>(x.size(), 7.f), against);
  plane_kernels().rotate({size, turned, pairs, cos.read_only(), sin.read_only(), lanes},
                         in.read_only(), plane, lanes, y.data(), plane);
  std::vector<double> expected(x.size(), 7.);
  for (int64_t c = 0; c < size; ++c)
    for (int64_t i = 0; i < lanes; ++i) {
      const bool first = pairs ? c % 2 == 0 : c < turned / 2;
      const int64_t apart = pairs ? 1 : turned / 2, other = first ? c + apart : c - apart;
      double& out = expected[c * plane + i] = x[c * plane + i];
      if (c >= turned) continue;
      out *= cos[c * lanes + i];
      out += (first ? -1. : 1.) * x[other * plane + i] * double{sin[c * lanes + i]};
    }
  expect_all(y, expected, std::vector<double>(x.size(), 3e-6));
}

void check_multiply(Against against, Random& random) {
  const int64_t lanes = kWidth * random.integer(0, 9);
  name("multiply", 1, lanes);
  const Guarded x(random.normals(lanes), against), by(random.normals(lanes), against);
  const Guarded<float> y(std::vector<float>(static_cast<size_t>(lanes)), against);
  plane_kernels().multiply(x.read_only(), by.read_only(), lanes, y.data());
  std::vector<double> expected;
  for (int64_t i = 0; i < lanes; ++i) expected.push_back(double{x[i]} * by[i]);
  expect_all(y, expected, std::vector<double>(expected.size(), 1e-6));
}

}  // namespace

void check_sequences(int64_t count, Random& random) {
  for (const Against against : {Against::low_page, Against::high_page})
    for (int64_t i = 0; i < count; ++i) {
      check_normalise(against, random);
      check_attend(against, random);
      check_rotate(against, random);
      check_multiply(against, random);
    }
}
