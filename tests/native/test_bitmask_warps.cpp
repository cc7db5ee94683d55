// The CUDA bitmask kernel on the CPU: whole layers through a model of its warps that knows shared
// memory and copies under way only by kernels/cuda/bitmask_index.h.
#include <cstring>
#include <limits>

#include "check.h"
#include "kernels/cuda/bitmask_index.h"

namespace {

using namespace sparseprune;
using namespace sparseprune::bitmask;

// When a copy that was asked for arrives: any time until it is waited for.
enum class Arrival { at_once, when_waited_for };

// The ring of one warp. Values are checked against the ends of theirs by std::vector::at.
template <typename T>
class Ring {
 public:
  Ring(const std::vector<T>& values, size_t first, uint32_t lead, uint32_t bytes, Arrival arrival)
      : values_(values), from_(first * sizeof(T) - lead), bytes_(bytes), arrival_(arrival) {
    ring_.assign(kRingBytes + kRepeatedBytes, static_cast<char>(0xFF));
    expect(from_ % kCopyBytes == 0, "copies are aligned");
  }

  void need(uint32_t begin, uint32_t end) {
    const uint32_t until = ask_until(bytes_, begin);
    for (; asked_ < until; ++asked_)
      if (arrival_ == Arrival::at_once) copy(asked_);
    expect(asked_ >= chunks_to(end), "all that is needed was asked for");
    for (; arrived_ + waited_for(asked_ - chunks_to(end)) < asked_; ++arrived_)
      if (arrival_ == Arrival::when_waited_for) copy(arrived_);
  }
  T at(uint32_t byte) const {
    T value;
    std::memcpy(&value, &ring_.at(place_of(byte)), sizeof(T));
    return value;
  }
  // The i-th value from a byte on: no wrap between them.
  T at(uint32_t byte, int i) const {
    T value;
    const size_t place = place_of(byte) + i * sizeof(T);
    expect(place + sizeof(T) <= ring_.size(), "a lane reads inside of the ring");
    std::memcpy(&value, &ring_.at(place), sizeof(T));
    return value;
  }

 private:
  void copy(uint32_t chunk) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t byte = chunk * kChunkBytes + lane * kCopyBytes;
      const uint32_t live = byte < bytes_ ? std::min(kCopyBytes, bytes_ - byte) : 0;
      char piece[kCopyBytes] = {};
      for (uint32_t i = 0; i < live; ++i) {
        const size_t from = from_ + byte + i;
        piece[i] = reinterpret_cast<const char*>(&values_.at(from / sizeof(T)))[from % sizeof(T)];
      }
      std::memcpy(&ring_.at(place_of(byte)), piece, kCopyBytes);
      if (repeated(chunk, lane))
        std::memcpy(&ring_.at(kRingBytes + lane * kCopyBytes), piece, kCopyBytes);
    }
  }

  const std::vector<T>& values_;
  size_t from_;
  uint32_t bytes_;
  Arrival arrival_;
  std::vector<char> ring_;
  uint32_t asked_ = 0, arrived_ = 0;
};

struct Mask {
  uint32_t low, high;
};

// The mask of a column of a unit; none past the last column.
Mask mask_of(const Packed& p, int64_t cols, int64_t unit, int64_t c) {
  Mask m{0, 0};
  if (c < cols) std::memcpy(&m, &p.masks.at((unit * cols + c) * Bitmask::kMaskBytes), sizeof m);
  return m;
}

// sums[row] of one warp's strip.
template <typename T>
void multiply_strip(const Packed& p, const std::vector<T>& values, int64_t cols, int64_t unit,
                    Strip strip, size_t first, int count, const std::vector<float>& x,
                    Arrival arrival, std::vector<double>& sums) {
  constexpr uint32_t kSize = sizeof(T);
  uint32_t byte = static_cast<uint32_t>(first * kSize % kCopyBytes);
  Ring<T> ring(values, first, byte, byte + count * kSize, arrival);
  for (int slab = strip.begin; slab < strip.end; ++slab) {
    Column columns[kSlab];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Mask m = mask_of(p, cols, unit, int64_t{slab} * kSlab + lane);
      columns[lane] = column_of(m.low, m.high, byte, kSize);
      byte += bits_of(m.low, m.high) * kSize;
    }
    for (int part = 0; part < kSlab; part += kPart<T>) {
      const int next = part + kPart<T>;
      const uint32_t begin = columns[part].half[0].start;
      const uint32_t end = next < kSlab ? columns[next].half[0].start : byte;
      if (begin == end) continue;
      ring.need(begin, end);
      for (int i = 0; i < kPart<T>; i += kAtOnce)
        for (int lane = 0; lane < kLanes; ++lane) {
          const int c = part + i + own_column(lane);
          const Own own = own_of(columns[c], first_row(lane), kSize);
          for (int row = 0, taken = 0; row < kOwn; ++row)
            if (own.kept >> row & 1)
              sums.at(first_row(lane) + row) +=
                  static_cast<double>(ring.at(own.byte, taken++)) * x.at(int64_t{slab} * kSlab + c);
        }
    }
  }
}

// Small whole numbers, so that sums are exact in any order and a stale byte shows.
template <typename T>
void check_layer(Random& random, int64_t rows, int64_t cols, double density, int warps,
                 Arrival arrival) {
  std::snprintf(running, sizeof running, "bitmask warps of %zu bytes, %dx%d, %.2f, %d warps, %d",
                sizeof(T), static_cast<int>(rows), static_cast<int>(cols), density, warps,
                static_cast<int>(arrival));
  Dense w{rows, cols, {}};
  for (int64_t i = 0; i < rows * cols; ++i)
    w.weights.push_back(random.share() < density ? static_cast<float>(random.integer(1, 30000))
                                                 : 0.f);
  std::vector<float> x;
  for (int64_t c = 0; c < cols; ++c) x.push_back(static_cast<float>(random.integer(-9, 9)));
  const Packed p = pack_bitmask(w);
  std::vector<T> values;
  for (const float v : p.values) values.push_back(static_cast<T>(v));

  const int slabs = slabs_of(cols);
  for (int64_t unit = 0; unit * kRows < rows; ++unit) {
    std::vector<double> sums(kRows, 0.);
    auto first = static_cast<size_t>(p.starts[unit]);
    int expected_begin = 0;
    for (int warp = 0; warp < warps; ++warp) {
      const Strip strip = strip_of(warp, warps, slabs);
      expect(strip.begin == expected_begin, "strips follow each other");
      expected_begin = strip.end;
      int count = 0;
      for (int64_t c = int64_t{strip.begin} * kSlab; c < int64_t{strip.end} * kSlab; ++c) {
        const Mask m = mask_of(p, cols, unit, c);
        count += bits_of(m.low, m.high);
      }
      multiply_strip(p, values, cols, unit, strip, first, count, x, arrival, sums);
      first += count;
    }
    expect(expected_begin == slabs, "strips cover the columns");
    expect(first == static_cast<size_t>(p.starts[unit + 1]), "strips cover the values");
    for (int row = 0; row < kRows; ++row) {
      double sum = 0;
      for (int64_t c = 0; c < cols; ++c) sum += double{w.at(unit * kRows + row, c)} * x[c];
      expect(sums[row] == sum, "row " + std::to_string(row) + " is " + std::to_string(sums[row]) +
                                   ", not " + std::to_string(sum));
    }
  }
}

template <typename T>
void check_layers(Random& random) {
  for (const Arrival arrival : {Arrival::at_once, Arrival::when_waited_for}) {
    for (const double density : {0., .05, .3, .5, .9, 1.})
      for (const int warps : {1, 3}) check_layer<T>(random, 130, 333, density, warps, arrival);
    check_layer<T>(random, 1, 1, 1., 1, arrival);
    check_layer<T>(random, 64, 1024, 1., 32, arrival);
    check_layer<T>(random, 70, 31, .5, 2, arrival);  // more warps than slabs
    check_layer<T>(random, 65, 0, .5, 1, arrival);
  }
}

// Every row of a unit belongs to one lane of each quarter, and every bit pattern is ranked right.
void check_ownership(Random& random) {
  std::snprintf(running, sizeof running, "bitmask ownership");
  std::vector<int> owners(kRows * kAtOnce, 0);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < kOwn; ++i) ++owners.at(own_column(lane) * kRows + first_row(lane) + i);
  for (const int count : owners) expect(count == 1, "a row of a column has one owner");
  for (int trial = 0; trial < 200; ++trial) {
    const auto low = static_cast<uint32_t>(random.integer(0, UINT32_MAX));
    const auto high = static_cast<uint32_t>(random.integer(0, UINT32_MAX));
    const Column c = column_of(low, high, 1000, 2);
    const uint64_t bits = uint64_t{high} << 32 | low;
    for (int lane = 0; lane < kLanes; ++lane) {
      const Own own = own_of(c, first_row(lane), 2);
      const int row = first_row(lane);
      const int below = std::popcount(bits & ((uint64_t{1} << row) - 1));
      expect(own.byte == 1000u + 2 * below, "values of rows below come first");
      expect((own.kept & 0xFF) == (bits >> row & 0xFF), "bits of own rows");
    }
  }
  for (uint32_t pending = 0; pending < 9; ++pending)
    expect(waited_for(pending) <= pending && (pending == 0 || waited_for(pending) > 0),
           "waits for enough, and not for everything");
}

// Tensor cores multiply W and x of the same column: every row and column of a step has one place in
// the fragments, and a lane's places in A and B are its rows and columns.
void check_steps() {
  std::snprintf(running, sizeof running, "bitmask steps");
  std::vector<int> rows(kRows, 0), columns(kStep, 0);
  for (int m = 0; m < kFragments; ++m)
    for (int row = 0; row < mma::kM; ++row) ++rows.at(unit_row(m, row));
  for (int k = 0; k < mma::kK; ++k) ++columns.at(step_column(k));
  for (const int count : rows) expect(count == 1, "a row of the unit is one of a fragment");
  for (const int count : columns) expect(count == 1, "a column is one k");
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int m = 0; m < kFragments; ++m)
      for (int i = 0; i < kOwn; ++i)
        for (int c = 0; c < kStepOwn; ++c) {  // as TensorCores::expand lays them
          if (fragment_of(i) != m) continue;
          const mma::Place at = mma::a_place(lane, 2 * register_of(i, c / 2) + c % 2);
          expect(unit_row(m, at.row) == step_row(lane) + i, "A has the lane's rows");
          expect(step_column(at.col) == step_first(lane) + c, "A has the lane's columns");
        }
    for (int c = 0; c < kStepOwn; ++c) {
      const mma::Place at = mma::b_place(lane, c);
      expect(step_column(at.row) == step_first(lane) + c && at.col == step_token(lane),
             "B has x of the lane's columns");
    }
  }
}

// No more thread blocks than multiprocessors, and no split without a slab.
void check_splits() {
  std::snprintf(running, sizeof running, "bitmask splits");
  expect(splits_for(64, 132, 256) == 2 && splits_for(128, 132, 256) == 1, "4096 and 8192 rows");
  for (const int units : {0, 1, 16, 33, 66, 67, 132, 500})
    for (const int slabs : {0, 1, 3, 100}) {
      const int splits = splits_for(units, 132, slabs);
      expect(splits == 1 || (splits * units <= 132 && splits <= slabs), "room for all");
      expect(splits <= kMostSplits && std::has_single_bit(static_cast<unsigned>(splits)), "size");
    }
}

}  // namespace

void check_bitmask_warps(Random& random) {
  check_ownership(random);
  check_steps();
  check_splits();
  check_layers<float>(random);
  check_layers<uint16_t>(random);
}
