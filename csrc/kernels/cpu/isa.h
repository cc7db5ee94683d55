// Which instruction sets this CPU has, and which one the kernels may use.
#pragma once
#include <string>

namespace sparseprune {

// Ordered: each level includes those below it.
enum class Isa { scalar, avx2, avx512 };

const char* isa_name(Isa isa);

// The best level that this CPU and operating system support.
Isa detected_isa();
// detected_isa(), or what SPARSEPRUNE_ISA asks for; throws std::runtime_error with the choices if
// that is unknown or more than the CPU has. Read once; force_isa changes it.
Isa current_isa();
void force_isa(const std::string& name);  // "" returns to the environment's choice

// Whether instructions that gather take longer than as many loads: so on AMD up to Zen 5.
bool slow_gathers();
// Whether vectors can count bits (AVX512_VPOPCNTDQ), and whether that is the faster way to expand a
// mask: so on AMD from Zen 4 on, whose expanding loads take six cycles.
bool counts_bits();
bool slow_expands();

}  // namespace sparseprune
