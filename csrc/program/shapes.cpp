#include "program/shapes.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sparseprune {
namespace {

[[noreturn]] void refuse(const std::string& argument, const std::string& expected,
                         const std::string& got) {
  throw std::invalid_argument("run: " + argument + " must be " + expected + ", got " + got);
}

constexpr double kMostFloats = 1LL << 40;  // of one value

std::string number(int64_t value) { return std::to_string(value); }

class Inference {
 public:
  Inference(const std::vector<Step>& steps, const std::vector<Sizes>& inputs) : inputs_(inputs) {
    for (const Step& s : steps) next(s);
    if (used_ != inputs.size()) refuse("inputs", number(used_) + " tensors", number(inputs.size()));
  }
  std::vector<Value> values;

 private:
  void next(const Step& s) {
    if (s.word == Word::kOutput) return void(at(s.x));
    if (s.out != static_cast<int64_t>(values.size()))
      refuse("program", "numbered in order of its steps", "value " + number(s.out));
    values.push_back({shape(s), {}});
    check_size(values.back().shape);
    check_dims(values.back().shape);
  }

  // The steps may come from a file. Far below 2^63, sums and products of sizes stay what they are.
  static void check_size(const Shape& y) {
    double floats = std::max(1.0, static_cast<double>(y.images)) *
                    std::max(1.0, static_cast<double>(y.channels));  // no empty batch hides a size
    for (int64_t size : y.size) {
      if (size >= int64_t{1} << 31) refuse("inputs", "of sizes below 2^31", number(size));
      floats *= static_cast<double>(size);
    }
    if (floats >= kMostFloats) refuse("inputs", "small enough to be computed", "more values");
  }

  // Outputs show as many dimensions as the first image has: in the others nothing may grow.
  void check_dims(const Shape& y) const {
    for (int64_t d = 0; d < std::min<int64_t>(3 - dims_, 3); ++d)
      if (y.size[d] != 1)
        refuse("program", "of images with " + number(dims_) + " sizes", number(y.size[d]));
  }

  const Shape& at(int64_t value) const {
    if (value < 0 || value >= static_cast<int64_t>(values.size()))
      refuse("program", "made of values that steps before gave", "value " + number(value));
    return values[value].shape;
  }
  const Shape& image(int64_t value) const {
    if (at(value).tokens) refuse("program", "images where windows read", "tokens");
    return at(value);
  }

  Shape shape(const Step& s) {
    switch (s.word) {
      case Word::kInput:
        return input(s);
      case Word::kCsr:
        return csr(s);
      case Word::kBitmask:
      case Word::kSell:
      case Word::kLinear:
        return linear(s);
      case Word::kDepthwise:
        return depthwise(s);
      case Word::kPool:
        return pool(s);
      case Word::kMean:
        return mean(s);
      case Word::kAdaptive:
        return adaptive(s);
      case Word::kUpsample:
        return upsample(s);
      case Word::kFlatten:
        return flatten(s);
      case Word::kPixels:
        return pixels(s);
      case Word::kPicture:
        return picture(s);
      case Word::kNorm:
        return norm(s);
      case Word::kRotary:
        return rotary(s);
      case Word::kAttention:
        return attention(s);
      case Word::kCat:
        return cat(s);
      case Word::kChannels:
        return channels(s);
      case Word::kScale:
        return scale(s);
      case Word::kAdd:
      case Word::kMultiply:
        return with_residual(at(s.x), s.y);
      case Word::kOutput:
      case Word::kTurn:
      case Word::kTaken:
        break;
    }
    return {};
  }

  Shape input(const Step& s) {
    if (used_ == inputs_.size()) refuse("inputs", "a tensor for every input", number(used_));
    const Sizes& sizes = inputs_[used_++];
    const int64_t rank = static_cast<int64_t>(sizes.size());
    Shape shape;
    shape.tokens = s.tokens;
    shape.channels = s.channels;
    const int64_t place = s.tokens ? rank - 1 : 1;
    if (rank < 1 || (!s.tokens && rank != s.dims + 2))
      refuse("inputs", number(s.dims + 2) + "-dimensional", number(rank) + " dimensions");
    if (s.tokens && s.channels == 0) shape.channels = sizes[place];  // any number
    if (sizes[place] != shape.channels)
      refuse("inputs", "of " + number(s.channels) + " features or channels", number(sizes[place]));
    shape.images = 1;
    if (s.tokens) {
      shape.lead.assign(sizes.begin(), sizes.end() - 1);
      for (int64_t n : shape.lead) shape.images *= n;
    } else {
      shape.images = sizes[0] / s.innermost;
      if (dims_ < 0) dims_ = s.dims;
      for (int64_t d = 0; d < s.dims; ++d) shape.size[3 - s.dims + d] = sizes[2 + d];
      shape.size[2] *= s.innermost;
    }
    return shape;
  }

  Shape windowed(const Step& s, const Shape& x, int64_t channels) const {
    Shape y = x;
    y.channels = channels;
    for (int d = 0; d < 3; ++d) {
      const Window& w = s.window;
      const int64_t reach = w.dilation[d] * (w.kernel[d] - 1) + 1;
      const int64_t over = s.ceil ? w.stride[d] - 1 : 0;  // that the last window may stand out
      if (x.size[d] + w.before[d] + w.after[d] + over < reach)
        refuse("inputs", "as large as the dilated kernel",
               number(x.size[d] + w.before[d] + w.after[d]) + " of " + number(reach));
      const int64_t pad = std::max(w.before[d], w.after[d]);
      if ((w.mode == PadMode::kReflect && pad >= x.size[d]) ||
          (w.mode == PadMode::kCircular && pad > x.size[d]))
        refuse("inputs", "large enough for their padding", number(x.size[d]));
      y.size[d] = w.out(d, x.size[d]);
    }
    return y;
  }

  Shape csr(const Step& s) {
    const Shape& x = at(s.x);
    if (x.channels * s.window.taps() != s.cols * s.groups || s.rows % s.groups)
      refuse("inputs", "of " + number(s.cols * s.groups / s.window.taps()) + " channels",
             number(x.channels));
    if (!x.tokens) return with_residual(windowed(s, x, s.rows), s.y);
    Shape y = x;
    y.channels = s.rows;
    return with_residual(y, s.y);
  }
  Shape linear(const Step& s) {
    Shape y = at(s.x);
    if (!y.tokens) refuse("program", "tokens where linear layers read", "an image");
    if (y.channels != s.cols)
      refuse("inputs", "of " + number(s.cols) + " features", number(y.channels));
    y.channels = s.rows;
    return with_residual(y, s.y);
  }
  Shape depthwise(const Step& s) {
    const Shape& x = at(s.x);
    if (x.channels != s.channels)
      refuse("inputs", "of " + number(s.channels) + " channels", number(x.channels));
    if (x.tokens) {
      if (s.multiplier != 1 || !s.window.pointwise())
        refuse("program", "factors alone where tokens are scaled", "a window");
      return with_residual(x, s.y);
    }
    return with_residual(windowed(s, x, s.channels * s.multiplier), s.y);
  }
  Shape pool(const Step& s) {
    const Shape& x = image(s.x);
    Shape y = windowed(s, x, x.channels);
    const Window& w = s.window;
    for (int d = 0; s.ceil && d < 3; ++d) {
      const int64_t span =
          x.size[d] + w.before[d] + w.after[d] - w.dilation[d] * (w.kernel[d] - 1) - 1;
      y.size[d] = (span + w.stride[d] - 1) / w.stride[d] + 1;
      // As torch: the last window must begin inside the image or its left padding.
      if ((y.size[d] - 1) * w.stride[d] >= x.size[d] + w.before[d]) --y.size[d];
    }
    return y;
  }
  Shape mean(const Step& s) {
    Shape y = image(s.x);
    y.size[0] = y.size[1] = 1, y.size[2] = s.innermost;
    return y;
  }
  Shape adaptive(const Step& s) {
    Shape y = image(s.x);
    for (int d = 0; d < 3; ++d) {
      if (y.size[d] < 1) refuse("inputs", "of positive sizes", number(y.size[d]));
      if (s.size[d]) y.size[d] = s.size[d];
    }
    return y;
  }
  Shape upsample(const Step& s) {
    Shape y = image(s.x);
    for (int d = 0; d < 3; ++d) y.size[d] *= s.size[d];
    return y;
  }
  Shape flatten(const Step& s) {
    const Shape& x = image(s.x);
    Shape y;
    y.tokens = true;
    y.images = x.images;
    y.channels = x.channels * x.size[0] * x.size[1] * x.size[2];
    y.lead = {x.images};
    return y;
  }
  // Tokens that lie as pixels do, and back.
  Shape pixels(const Step& s) {
    const Shape& x = image(s.x);
    Shape y;
    y.tokens = y.pixels = true, y.channels = x.channels, y.images = x.images, y.lead = {x.images};
    for (int64_t d = 3 - s.dims; d < 3; ++d) y.lead.push_back(x.size[d]), y.images *= x.size[d];
    for (int64_t d = 0; d < 3 - s.dims; ++d)
      if (x.size[d] != 1) refuse("program", "of images with fewer sizes", number(x.size[d]));
    return y;
  }
  Shape picture(const Step& s) {
    const Shape& x = tokens(s.x, 0);
    if (static_cast<int64_t>(x.lead.size()) != s.dims + 1)
      refuse("inputs", number(s.dims + 2) + "-dimensional", number(x.lead.size() + 1));
    if (dims_ < 0) dims_ = s.dims;
    Shape y;
    y.channels = x.channels, y.images = x.lead[0];
    std::copy(x.lead.begin() + 1, x.lead.end(), y.size + 3 - s.dims);
    return y;
  }
  const Shape& tokens(int64_t value, int64_t channels) const {
    if (!at(value).tokens) refuse("program", "tokens where sequences are read", "an image");
    if (at(value).channels < channels)
      refuse("inputs", "of " + number(channels) + " features", number(at(value).channels));
    return at(value);
  }
  Shape norm(const Step& s) {
    const Shape& x = tokens(s.x, s.channels);
    if (x.channels != s.channels)
      refuse("inputs", "of " + number(s.channels) + " features", number(x.channels));
    return x;
  }
  // The channel behind the last of so many heads, of query, key or value.
  static int64_t end_of_heads(const Step& s, int which, int64_t heads) {
    return s.first[which] + (heads - 1) * s.strides[which] + s.head;
  }
  Shape rotary(const Step& s) {
    Shape y = tokens(s.x, end_of_heads(s, 0, s.heads));
    for (int64_t table : {s.y, s.z})
      if (tokens(table, s.count).images != y.images || at(table).channels != s.count)
        refuse("inputs", "angles of every token", "others");
    if (s.count > s.head || s.count % 2)
      refuse("program", "of heads that turn in planes", number(s.count));
    y.channels = s.heads * s.head;
    return y;
  }
  Shape attention(const Step& s) {
    if (s.heads % s.group) refuse("program", "of equal groups of heads", number(s.group));
    const int64_t shared = s.heads / s.group;
    Shape y = tokens(s.x, end_of_heads(s, 0, s.heads));
    const Shape& k = tokens(s.y, end_of_heads(s, 1, shared));
    const Shape& v = tokens(s.z, end_of_heads(s, 2, shared));
    const auto sequences = [](const Sizes& lead) { return Sizes(lead.begin(), lead.end() - 1); };
    if (y.lead.empty() || k.lead.empty() || k.lead != v.lead ||
        sequences(y.lead) != sequences(k.lead) || k.lead.back() < 1)
      refuse("inputs", "sequences of queries, keys and values", "others");
    if (s.mask >= 0) {
      const Shape& mask = tokens(s.mask, k.lead.back());
      if (mask.images != y.images || mask.channels != k.lead.back() || mask.lead.empty() ||
          mask.lead[0] != y.lead[0])
        refuse("inputs", "masks of every query and key", "others");
    }
    y.channels = s.heads * s.head;
    return y;
  }
  Shape cat(const Step& s) {
    Shape y = image(s.x);
    const Shape& other = image(s.y);
    check_same(y, other, other.channels);
    y.channels += other.channels;
    return y;
  }
  Shape channels(const Step& s) {
    Shape y = image(s.x);
    if (y.channels % s.groups || s.begin + s.count > y.channels)
      refuse("inputs", "of channels that can be chosen", number(y.channels));
    y.channels = s.count;
    return y;
  }
  Shape scale(const Step& s) {
    const Shape &x = image(s.x), &by = image(s.y);
    if (by.images != x.images || by.channels != x.channels ||
        by.size[0] * by.size[1] * by.size[2] != 1)
      refuse("inputs", "of sizes that scale channels", "others");
    return x;
  }

  Shape with_residual(Shape y, int64_t residual) const {
    if (residual >= 0) check_same(y, at(residual), y.channels);
    return y;
  }
  static void check_same(const Shape& a, const Shape& b, int64_t channels) {
    if (a.tokens != b.tokens || a.images != b.images || b.channels != channels ||
        a.size[0] != b.size[0] || a.size[1] != b.size[1] || a.size[2] != b.size[2])
      refuse("inputs", "of sizes that add up", "others");
  }

  const std::vector<Sizes>& inputs_;
  size_t used_ = 0;
  int64_t dims_ = -1;  // of the first image
};

}  // namespace

std::vector<Value> infer(const std::vector<Step>& steps, const std::vector<Sizes>& inputs) {
  return Inference(steps, inputs).values;
}

Sizes sizes_of(const std::vector<Step>& steps, const Shape& shape) {
  Sizes sizes = shape.lead;
  if (shape.tokens) {
    sizes.push_back(shape.channels);
    return sizes;
  }
  sizes = {shape.images, shape.channels};
  for (const Step& s : steps)
    if ((s.word == Word::kInput && !s.tokens) || s.word == Word::kPicture) {
      sizes.insert(sizes.end(), shape.size + 3 - s.dims, shape.size + 3);
      break;
    }
  return sizes;
}

}  // namespace sparseprune
