#include "program/layout.h"

#include <algorithm>
#include <stdexcept>

namespace sparseprune {
namespace {

constexpr double kMostFloats = 1LL << 42;  // of one value with its padding

int64_t whole(int64_t floats) { return (floats + 15) / 16 * 16; }

// Before the product is taken in integers, which would wrap around.
void check_floats(int64_t a, int64_t b, int64_t c) {
  if (static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c) >= kMostFloats)
    throw std::invalid_argument("run: inputs must be small enough to be padded; make them smaller");
}

}  // namespace

Layout::Node& Layout::node(int64_t value) {
  if (nodes_.size() < values_.size()) nodes_.resize(values_.size());
  return nodes_[value];
}

int64_t Layout::root(int64_t value) {
  while (node(value).parent >= 0) value = node(value).parent;
  return value;
}

void Layout::same_pitch(int64_t a, int64_t b) {
  a = root(a), b = root(b);
  if (a == b) return;
  Node &to = node(a), &from = node(b);
  to.columns = std::max(to.columns, from.columns);
  to.rows = std::max(to.rows, from.rows);
  to.row = std::max(to.row, from.row);
  from.parent = a;
}

void Layout::padding(int64_t value, int64_t columns, int64_t rows) {
  row(value, values_[value].shape.size[2] + columns);
  Node& n = node(root(value));
  n.rows = std::max(n.rows, values_[value].shape.size[1] + rows);
}

void Layout::row(int64_t value, int64_t floats) {
  Node& n = node(root(value));
  n.row = std::max(n.row, floats);
}

void Layout::resolve() {
  for (size_t v = 0; v < values_.size(); ++v)
    if (!values_[v].shape.tokens) padding(v, 0, 0);
  for (size_t v = 0; v < values_.size(); ++v) {
    Value& value = values_[v];
    if (value.shape.tokens) continue;
    const Node& n = node(root(v));
    Planes& p = value.planes;
    p.images = value.shape.images, p.channels = value.shape.channels;
    p.depth = value.shape.size[0], p.height = value.shape.size[1], p.width = value.shape.size[2];
    p.row = n.row;
    check_floats(n.row, n.rows, p.depth);
    p.slice = n.row * n.rows;
    p.plane = p.lanes();
  }
}

void lay_tokens(Value& value, int64_t lanes, bool rows_form) {
  const int64_t tokens = value.shape.images;
  Planes& p = value.planes;
  value.rows_form = rows_form;
  if (rows_form) {
    p.images = tokens, p.channels = 1, p.width = value.shape.channels;
    p.row = p.slice = p.plane = p.image = whole(value.shape.channels);
    return;
  }
  p.images = (tokens + lanes - 1) / lanes;
  p.channels = value.shape.channels;
  // Tiles of about the same size.
  p.width = p.images ? std::min(lanes, whole((tokens + p.images - 1) / p.images)) : 16;
  p.row = p.slice = p.plane = p.width;
  p.image = p.channels * p.width;
}

void reach(Value& value, int64_t before, int64_t end) {
  Planes& p = value.planes;
  const int64_t tail = p.plane - p.lead;
  p.lead = std::max(p.lead, whole(before));
  p.plane = p.lead + std::max(tail, whole(end));
}

void close_planes(Value& value) {
  if (value.shape.tokens) return;
  Planes& p = value.planes;
  const bool bare = p.lead == 0 && p.plane <= 64;  // one tile, read where it lies
  if (!bare && p.plane / 16 % 2 == 0) p.plane += 16;
  check_floats(p.images, p.channels, p.plane);
  p.image = p.channels * p.plane;
}

namespace {

// What hosts others is needed from when the first of them is made until the last is read.
void share_life(std::vector<Value>& values, const Value& v) {
  for (int64_t host = v.host; host >= 0; host = values[host].host) {
    Value& h = values[host];
    if (v.first >= 0) h.first = h.first < 0 ? v.first : std::min(h.first, v.first);
    h.last = std::max(h.last, v.last);
  }
}

void find_in_host(std::vector<Value>& values, Value& v) {
  if (v.host < 0) return;
  int64_t root = v.host, channel = v.channel;
  for (; values[root].host >= 0; root = values[root].host) channel += values[root].channel;
  v.buffer = values[root].buffer + channel * v.planes.plane;
}

}  // namespace

int64_t place(std::vector<Value>& values) {
  std::vector<Value*> alive;
  std::vector<Value*> order;
  for (Value& v : values) share_life(values, v);
  for (Value& v : values)
    if (v.first >= 0 && v.host < 0) order.push_back(&v);
  std::stable_sort(order.begin(), order.end(),
                   [](const Value* a, const Value* b) { return a->first < b->first; });
  int64_t end = 0;
  for (Value* value : order) {
    std::erase_if(alive, [&](const Value* v) { return v->last < value->first; });
    std::sort(alive.begin(), alive.end(),
              [](const Value* a, const Value* b) { return a->buffer < b->buffer; });
    if (value->over >= 0 && values[value->over].host < 0 &&
        values[value->over].last == value->first) {
      value->buffer = values[value->over].buffer;
      std::erase(alive, &values[value->over]);
      alive.push_back(value);
      continue;
    }
    int64_t at = 0;  // the first gap that is large enough
    for (const Value* other : alive) {
      if (at + value->floats() <= other->buffer) break;
      at = std::max(at, other->buffer + other->floats());
    }
    value->buffer = at;
    end = std::max(end, at + value->floats());
    alive.push_back(value);
  }
  for (Value& v : values) find_in_host(values, v);
  return end;
}

}  // namespace sparseprune
