// What the ops of formats that take half and any memory format check and make alike.
#pragma once
#include "formats/conv2d.h"
#include "ops/csr_args.h"

namespace sparseprune {

// `taps` of a packed weight: 1, or those of the window.
inline void check_taps(const char* op, int64_t taps, const Conv2dShape& s) {
  check(taps == 1 || taps == s.kernel_h * s.kernel_w, op, ": taps must be 1 or ",
        s.kernel_h * s.kernel_w, ", the size of the kernel, got ", taps);
}

inline ImageStrides image_strides(const Tensor& t) {
  return {t.strides()[0], t.strides()[1], t.strides()[2], t.strides()[3]};
}

// Whether channels are innermost, and not by chance (one channel, one pixel).
inline bool channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t step = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != step) return false;
    step *= x.size(d);
  }
  return true;
}

// x where it lies if it is dense in either memory format, else a copy.
inline Tensor dense_image(const Tensor& x) { return channels_last(x) ? x : dense_copy(x); }

// In the memory format of x.
inline Tensor image_output(const Tensor& x, const Conv2dShape& s) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      {s.batch, s.rows, s.out_height(), s.out_width()}, x.scalar_type(), std::nullopt, x.device(),
      std::nullopt, channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace sparseprune
