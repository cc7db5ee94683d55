// torch's threads, for kernels that know no torch.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "kernels/cpu/threads.h"

namespace sparseprune {

inline Threads torch_threads() {
  return {torch::stable::get_num_threads(),
          [](int64_t n, const std::function<void(int64_t)>& task) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) task(i);
            });
          }};
}

}  // namespace sparseprune
