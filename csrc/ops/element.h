// How ops of CUDA hand over tensors of several types.
#pragma once
#include "kernels/cuda/element.h"
#include "ops/args.h"

namespace sparseprune {

// Of x, whose dtype was checked.
inline Element element(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Half) return Element::float16;
  return x.scalar_type() == ScalarType::BFloat16 ? Element::bfloat16 : Element::float32;
}

inline const void* any_data(const std::optional<Tensor>& t) {
  return t ? t->const_data_ptr() : nullptr;
}

}  // namespace sparseprune
