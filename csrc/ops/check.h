// The only check of user input on the native side: a message with operation, argument, expected,
// got and the way out. It becomes a RuntimeError in Python.
#pragma once
#include <sstream>
#include <stdexcept>

namespace sparseprune {

template <typename... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace sparseprune
