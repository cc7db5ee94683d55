#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sparseprune {
namespace {

constexpr Isa kLevels[] = {Isa::scalar, Isa::avx2, Isa::avx512};
constexpr int kUnread = -1;
std::atomic<int> current{kUnread};

Isa parse(const std::string& name) {
  for (Isa isa : kLevels)
    if (name == isa_name(isa)) {
      if (isa <= detected_isa()) return isa;
      throw std::runtime_error("SPARSEPRUNE_ISA: this CPU does not support " + name +
                               ", its best is " + isa_name(detected_isa()));
    }
  throw std::runtime_error("SPARSEPRUNE_ISA: expected scalar, avx2 or avx512, got '" + name +
                           "'; unset it to use the best that the CPU has");
}

Isa from_environment() {
  const char* name = std::getenv("SPARSEPRUNE_ISA");
  return name && *name ? parse(name) : detected_isa();
}

}  // namespace

const char* isa_name(Isa isa) {
  constexpr const char* names[] = {"scalar", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

Isa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::scalar;
#else
  return Isa::scalar;
#endif
}

namespace {

bool is_amd() {
#if defined(__x86_64__)
  static const bool amd = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
  return amd;
#else
  return false;
#endif
}

}  // namespace

bool slow_gathers() { return is_amd(); }

bool counts_bits() {
#if defined(__x86_64__)
  static const bool counts = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vpopcntdq"));
  return counts;
#else
  return false;
#endif
}

bool slow_expands() { return is_amd() && counts_bits(); }

Isa current_isa() {
  int isa = current.load(std::memory_order_relaxed);
  if (isa == kUnread) {
    isa = static_cast<int>(from_environment());
    current.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void force_isa(const std::string& name) {
  current.store(static_cast<int>(name.empty() ? from_environment() : parse(name)));
}

}  // namespace sparseprune
