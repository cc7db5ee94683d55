// The threads that a layer may use. No torch: the caller brings them.
#pragma once
#include <cstdint>
#include <functional>

namespace sparseprune {

struct Threads {
  int64_t count;
  // Calls task(i) once for every i in [0, n), from up to `count` threads; returns when all ended.
  std::function<void(int64_t n, const std::function<void(int64_t)>& task)> run;
};

}  // namespace sparseprune
