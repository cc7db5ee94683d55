// Which of the kernels multiplies how many tokens.
#pragma once
#include <type_traits>

#include "kernels/cuda/bitmask_fma.cuh"
#include "kernels/cuda/bitmask_mma.cuh"

namespace sparseprune::bitmask {

// run(std::type_identity<Multiply>{}) for the smallest kernel that holds so many tokens, or the
// largest. Tensor cores take 16-bit types from two tokens on: each more would be an FMA per
// position.
template <typename T, typename Run>
int with_form(int64_t tokens, const Run& run) {
  if (tokens == 1) return run(std::type_identity<Fma<T, 1>>{});
  if constexpr (sizeof(T) == 2) {
    if (tokens <= kTile) return run(std::type_identity<TensorCores<T, 1>>{});
    if (tokens <= 2 * kTile) return run(std::type_identity<TensorCores<T, 2>>{});
    if (tokens <= 4 * kTile) return run(std::type_identity<TensorCores<T, 4>>{});
    return run(std::type_identity<TensorCores<T, 8>>{});
  } else {
    if (tokens == 2) return run(std::type_identity<Fma<T, 2>>{});
    if (tokens <= 4) return run(std::type_identity<Fma<T, 4>>{});
    return run(std::type_identity<Fma<T, 8>>{});
  }
}

// All tokens, as many at a time as the kernel holds; run(std::type_identity<Multiply>{}, first,
// tokens) until it returns an error.
template <typename T, typename Run>
int for_all_tokens(int64_t tokens, const Run& run) {
  for (int64_t done = 0, now = 0; done < tokens; done += now) {
    const int error = with_form<T>(tokens - done, [&](auto form) {
      constexpr int kMost = decltype(form)::type::kMostTokens;
      now = tokens - done < kMost ? tokens - done : kMost;
      return run(form, done, now);
    });
    if (error) return error;
  }
  return 0;
}

}  // namespace sparseprune::bitmask
