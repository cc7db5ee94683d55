// Masks of lanes (-1: live, 0: not), which kernels load by whole lines.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace sparseprune {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};

using Masks = std::vector<int32_t, LineAllocator<int32_t>>;

}  // namespace sparseprune
