// What the CUDA ops of every format share: torch's stream, and launches that fail.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "kernels/cuda/csr.cuh"
#include "ops/args.h"

namespace sparseprune {

// libtorch_cuda has this function; a CPU-only libtorch, which this must link against where no
// CUDA torch is installed, does not. So it is looked up when first needed.
inline void* current_stream(const char* op, const Tensor& x) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  check(get, op, ": torch's CUDA library must be loaded; install a torch build with CUDA");
  void* stream = nullptr;
  check(get(x.get_device_index(), &stream) == 0, op, ": torch gave no current CUDA stream");
  return stream;
}

inline void check_launch(const char* op, int error) {
  check(error == 0, op, ": the kernel did not start: ", cuda_error_text(error));
}

}  // namespace sparseprune
