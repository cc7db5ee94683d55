#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>

#include "program/steps.h"

namespace sparseprune {
namespace {

// Reads the words of one line in the order of the fields in steps.py.
class Line {
 public:
  explicit Line(std::string line) : line_(std::move(line)) {}

  std::string word() {
    const size_t begin = std::min(line_.find_first_not_of(' ', at_), line_.size());
    at_ = std::min(line_.find(' ', begin), line_.size());
    if (begin == at_) fail("words are missing");
    return line_.substr(begin, at_ - begin);
  }
  int64_t integer() { return static_cast<int64_t>(number()); }
  // An integer in [low, high]: nothing below trusts the text.
  int64_t within(int64_t low, int64_t high) {
    const int64_t value = integer();
    if (value < low || value > high) fail("a number is out of range");
    return value;
  }
  double number() {
    const std::string text = word();
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (*end) fail("'" + text + "' is not a number");
    return value;
  }
  template <typename T>
  T one_of(const std::map<std::string, T>& names) {
    const std::string name = word();
    const auto found = names.find(name);
    if (found == names.end()) fail("'" + name + "' is not known");
    return found->second;
  }
  void end() {
    if (line_.find_first_not_of(' ', at_) != std::string::npos) fail("words are left over");
  }

 private:
  [[noreturn]] void fail(const std::string& what) {
    throw std::invalid_argument("run: program must be as made by sparseprune.program, but " + what +
                                " in the line '" + line_ + "'; convert the model again");
  }
  std::string line_;
  size_t at_ = 0;
};

constexpr int64_t kMost = int64_t{1} << 31;  // of any count; products of two stay in 64 bits

Window window(Line& line) {
  Window w{};
  for (int64_t& v : w.kernel) v = line.within(1, 1 << 16);
  for (int64_t& v : w.stride) v = line.within(1, 1 << 16);
  for (int64_t& v : w.before) v = line.within(0, 1 << 16);
  for (int64_t& v : w.after) v = line.within(0, 1 << 16);
  for (int64_t& v : w.dilation) v = line.within(1, 1 << 16);
  w.mode = line.one_of<PadMode>({{"zeros", PadMode::kZeros},
                                 {"reflect", PadMode::kReflect},
                                 {"replicate", PadMode::kReplicate},
                                 {"circular", PadMode::kCircular}});
  return w;
}

Activation activation(Line& line) {
  Activation a;
  a.kind = line.one_of<Activation::Kind>({{"clamp", Activation::kClamp},
                                          {"leaky", Activation::kLeaky},
                                          {"elu", Activation::kElu},
                                          {"silu", Activation::kSilu},
                                          {"gelu", Activation::kGelu},
                                          {"gelu_tanh", Activation::kGeluTanh},
                                          {"hardswish", Activation::kHardswish},
                                          {"hardsigmoid", Activation::kHardsigmoid},
                                          {"sigmoid", Activation::kSigmoid},
                                          {"tanh", Activation::kTanh},
                                          {"mish", Activation::kMish}});
  a.clamp.low = static_cast<float>(line.number());
  a.clamp.high = static_cast<float>(line.number());
  return a;
}

void read_input(Line& line, Step& s) {
  s.tokens = line.one_of<bool>({{"tokens", true}, {"image", false}});
  s.channels = line.within(0, kMost);
  s.dims = line.within(0, 3);
}
void read_csr(Line& line, Step& s) {
  s.x = line.integer(), s.y = line.integer();
  s.tensors = line.within(0, kMost);
  s.rows = line.within(0, kMost), s.cols = line.within(0, kMost);
  s.block = line.within(0, 255), s.groups = line.within(1, kMost);
  s.has_bias = line.within(0, 1);
  s.window = window(line), s.activation = activation(line);
}
void read_linear(Line& line, Step& s) {
  s.x = line.integer(), s.y = line.integer();
  s.tensors = line.within(0, kMost);
  s.rows = line.within(0, kMost), s.cols = line.within(0, kMost);
  s.has_bias = line.within(0, 1);
  s.activation = activation(line);
}
void read_depthwise(Line& line, Step& s) {
  s.x = line.integer(), s.y = line.integer();
  s.tensors = line.within(0, kMost);
  s.channels = line.within(0, kMost), s.multiplier = line.within(1, kMost);
  s.has_bias = line.within(0, 1);
  s.window = window(line), s.activation = activation(line);
}
void read_pool(Line& line, Step& s) {
  s.x = line.integer();
  s.average = line.one_of<bool>({{"max", false}, {"avg", true}});
  s.ceil = line.within(0, 1), s.count_padding = line.within(0, 1);
  s.window = window(line);
}
void read_x(Line& line, Step& s) { s.x = line.integer(); }
void read_adaptive(Line& line, Step& s) {
  s.x = line.integer();
  for (int64_t& size : s.size) size = line.within(0, 1 << 16);
}
void read_pixels(Line& line, Step& s) { s.x = line.integer(), s.dims = line.within(1, 2); }
void read_upsample(Line& line, Step& s) {
  s.x = line.integer();
  for (int64_t& times : s.size) times = line.within(1, 1 << 16);
}
void read_channels(Line& line, Step& s) {
  s.x = line.integer();
  s.groups = line.within(1, kMost);
  s.begin = line.within(0, kMost), s.count = line.within(0, kMost);
}
void read_norm(Line& line, Step& s) {
  s.x = line.integer();
  s.tensors = line.within(0, kMost), s.channels = line.within(1, kMost);
  s.has_bias = line.within(0, 1), s.centred = line.within(0, 1);
  s.epsilon = static_cast<float>(line.number());
}
void read_attention(Line& line, Step& s) {
  s.x = line.integer(), s.y = line.integer(), s.z = line.integer();
  s.mask = line.within(-1, kMost);
  for (int64_t& first : s.first) first = line.within(0, kMost);
  for (int64_t& stride : s.strides) stride = line.within(1, kMost);
  s.heads = line.within(1, 1 << 16), s.head = line.within(1, 1 << 16);
  s.group = line.within(1, 1 << 16);
  s.causal = line.within(0, 1), s.scale = static_cast<float>(line.number());
}
void read_rotary(Line& line, Step& s) {
  s.x = line.integer(), s.y = line.integer(), s.z = line.integer();
  s.first[0] = line.within(0, kMost), s.strides[0] = line.within(1, kMost);
  s.heads = line.within(1, 1 << 16), s.head = line.within(1, 1 << 16);
  s.count = line.within(2, 1 << 16), s.pairs = line.within(0, 1);
}
void read_pair(Line& line, Step& s) { s.x = line.integer(), s.y = line.integer(); }
void read_add(Line& line, Step& s) { read_pair(line, s), s.activation = activation(line); }

struct Reader {
  Word word;
  void (*read)(Line&, Step&);
};
const std::map<std::string, Reader> kReaders = {{"input", {Word::kInput, read_input}},
                                                {"csr", {Word::kCsr, read_csr}},
                                                {"bitmask", {Word::kBitmask, read_linear}},
                                                {"sell", {Word::kSell, read_linear}},
                                                {"linear", {Word::kLinear, read_linear}},
                                                {"depthwise", {Word::kDepthwise, read_depthwise}},
                                                {"pool", {Word::kPool, read_pool}},
                                                {"mean", {Word::kMean, read_x}},
                                                {"adaptive", {Word::kAdaptive, read_adaptive}},
                                                {"upsample", {Word::kUpsample, read_upsample}},
                                                {"add", {Word::kAdd, read_add}},
                                                {"multiply", {Word::kMultiply, read_pair}},
                                                {"scale", {Word::kScale, read_add}},
                                                {"cat", {Word::kCat, read_pair}},
                                                {"channels", {Word::kChannels, read_channels}},
                                                {"flatten", {Word::kFlatten, read_x}},
                                                {"pixels", {Word::kPixels, read_pixels}},
                                                {"picture", {Word::kPicture, read_pixels}},
                                                {"norm", {Word::kNorm, read_norm}},
                                                {"rotary", {Word::kRotary, read_rotary}},
                                                {"attention", {Word::kAttention, read_attention}},
                                                {"output", {Word::kOutput, read_x}}};

}  // namespace

std::vector<Step> parse_program(const std::string& text) {
  std::vector<Step> steps;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    Line line(text.substr(at, end - at));
    at = end + 1;
    const Reader reader = line.one_of(kReaders);
    Step step{};
    step.word = reader.word;
    if (step.word != Word::kOutput) step.out = line.within(0, 1 << 20);
    reader.read(line, step);
    line.end();
    steps.push_back(step);
  }
  return steps;
}

}  // namespace sparseprune
