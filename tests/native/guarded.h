// An array between two pages that nobody may touch: an access past either end is a fault, not luck.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

enum class Against { low_page, high_page };  // which guard page the array touches

template <typename T>
class Guarded {
 public:
  Guarded(const std::vector<T>& content, Against against) : size_(content.size()) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = size_ * sizeof(T);
    inner_bytes_ = (bytes + page - 1) / page * page;
    total_bytes_ = inner_bytes_ + 2 * page;
    void* all = mmap(nullptr, total_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) fail("mmap");
    pages_ = static_cast<uint8_t*>(all);
    inner_ = pages_ + page;
    if (inner_bytes_) {
      if (mprotect(inner_, inner_bytes_, PROT_READ | PROT_WRITE)) fail("mprotect");
      std::memset(inner_, kCanary, inner_bytes_);
    }
    uint8_t* begin = against == Against::low_page ? inner_ : inner_ + inner_bytes_ - bytes;
    data_ = reinterpret_cast<T*>(begin);
    if (bytes) std::memcpy(begin, content.data(), bytes);
  }
  ~Guarded() { munmap(pages_, total_bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  T operator[](size_t i) const { return data_[i]; }

  // A later write is a fault.
  const T* read_only() const {
    if (inner_bytes_ && mprotect(inner_, inner_bytes_, PROT_READ)) fail("mprotect");
    return data_;
  }

  // Whether the rest of the array's pages is as it was.
  bool surroundings_intact() const {
    const uint8_t* begin = reinterpret_cast<const uint8_t*>(data_);
    const uint8_t* end = begin + size_ * sizeof(T);
    for (const uint8_t* p = inner_; p != inner_ + inner_bytes_; ++p)
      if ((p < begin || p >= end) && *p != kCanary) return false;
    return true;
  }

 private:
  static constexpr uint8_t kCanary = 0xA5;

  [[noreturn]] static void fail(const char* what) {
    std::perror(what);
    std::exit(2);
  }

  size_t size_, inner_bytes_, total_bytes_;
  uint8_t *pages_, *inner_;
  T* data_;
};
