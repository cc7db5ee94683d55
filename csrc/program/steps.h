// A program as its text says it: sparseprune/program/steps.py has the same steps, with words.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/activation.h"
#include "kernels/cpu/planes.h"

namespace sparseprune {

// Per dimension: depth, height, width.
struct Window {
  int64_t kernel[3], stride[3], before[3], after[3], dilation[3];
  PadMode mode;

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  // One tap, nothing between or around the elements.
  bool pointwise() const {
    int64_t padding = 0;
    for (int d = 0; d < 3; ++d) padding += before[d] + after[d];
    return taps() == 1 && stride[0] * stride[1] * stride[2] == 1 && padding == 0;
  }
  int64_t out(int dim, int64_t size) const {
    return (size + before[dim] + after[dim] - dilation[dim] * (kernel[dim] - 1) - 1) / stride[dim] +
           1;
  }
};

enum class Word {
  kInput,
  kCsr,
  kBitmask,
  kSell,
  kLinear,
  kDepthwise,
  kPool,
  kMean,
  kAdaptive,
  kUpsample,
  kAdd,
  kMultiply,
  kScale,
  kCat,
  kChannels,
  kFlatten,
  kNorm,
  kRotary,
  kAttention,
  kPixels,
  kPicture,
  kOutput,
  kTurn,  // tokens from one form to the other (tokens.h): in no text
  kTaken  // along by others (prepare.h): in no text
};

// One line; a step uses the fields that its word has in steps.py.
struct Step {
  Word word;
  int64_t out = -1, x = -1;
  int64_t y = -1;       // the second value: residual, by, y, key, cos
  int64_t z = -1;       // the third: value, sin
  int64_t mask = -1;    // the fourth: what is added to scores
  int64_t tensors = 0;  // index of its first tensor
  int64_t rows = 0, cols = 0, block = 0, groups = 1, has_bias = 0;
  int64_t channels = 0, multiplier = 1, dims = 2;
  bool tokens = false;  // of an input
  int64_t innermost =
      1;  // images side by side (innermost.h), of inputs, means and outputs: no text
  bool average = false, ceil = false, count_padding = false;
  int64_t size[3] = {1, 1,
                     1};  // that adaptive averages make (0 keeps one); times that nearest repeats
  int64_t begin = 0, count = 0;    // channels that are chosen; count: that turn, of every head
  int64_t first[3] = {0, 0, 0};    // channels of query, key and value in theirs
  int64_t strides[3] = {1, 1, 1};  // channels from a head to the next in each
  int64_t heads = 1, head = 1;     // of attention, and channels of each
  int64_t group = 1;               // heads of queries that share those of keys and values
  bool causal = false, centred = true, pairs = false;
  float scale = 1.f, epsilon = 0.f;
  Window window{};
  Activation activation{};
};

// Throws std::invalid_argument with the line that is no step.
std::vector<Step> parse_program(const std::string& text);

}  // namespace sparseprune
