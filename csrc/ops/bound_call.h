// How a bound program is called without torch's dispatcher: from the Python module, which is
// another library. No torch here.
#pragma once
#include <cstdint>

namespace sparseprune {

struct BoundCall {
  int64_t number;  // of the program
  int64_t inputs;
  const float* const* x;  // contiguous
  const int64_t* const* sizes;
  const int64_t* ranks;
  // Memory of an output, until the caller lets go of it.
  float* (*allocate)(void* context, const int64_t* sizes, int64_t rank);
  void* context;
};

// Null, or what went wrong: a message that stays until the thread's next call.
using RunBound = const char* (*)(const BoundCall*);

}  // namespace sparseprune
