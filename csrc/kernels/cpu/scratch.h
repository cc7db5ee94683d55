// Memory that a thread keeps from call to call: fresh pages would cost more than the kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace sparseprune {

class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // At least `floats` floats, 64-byte aligned; what it held before is lost when it grows.
  float* take(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace sparseprune
