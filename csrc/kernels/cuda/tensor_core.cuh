// The PTX that tensor-core kernels are made of, for sm_80 and later, one function each.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sparseprune {

using SharedAddress = uint32_t;
__device__ inline SharedAddress shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies `bytes` (0 to 16) of 16 aligned ones into shared memory, zeros after them, later.
__device__ inline void copy_async(SharedAddress to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
// The same for `kBytes` (4 or 8) of as many aligned ones, none of them zeros.
template <int kBytes>
__device__ inline void copy_async_few(SharedAddress to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of the latest groups are under way.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two 16-bit elements side by side, from two places in shared memory: where `low` is not 0 the one
// at `from_low`, and on to the next there, else zeros; the same for `high`. In C++ each step to the
// next would be two instructions, and so would be each join.
__device__ inline uint32_t take_pair(uint32_t low, SharedAddress& from_low, uint32_t high,
                                     SharedAddress& from_high) {
  uint32_t pair;
  asm volatile(
      "{ .reg .pred l, h; .reg .b32 upper; setp.ne.u32 l, %3, 0; setp.ne.u32 h, %4, 0; "
      "mov.b32 %0, 0; @l ld.shared.u16 %0, [%1]; @h ld.shared.u16 upper, [%2]; "
      "@l add.u32 %1, %1, 2; @h add.u32 %2, %2, 2; @h mad.lo.u32 %0, upper, 65536, %0; }"
      : "=&r"(pair), "+r"(from_low), "+r"(from_high)
      : "r"(low), "r"(high)
      : "memory");
  return pair;
}

// Four 8 x 8 matrices of 16-bit elements; see mma_fragments.h.
__device__ inline void load_matrices(uint32_t (&to)[4], SharedAddress from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// c += a b
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, a of 2:4 given as its values and their places (metadata of mma_fragments.h).
__device__ inline void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[4], uint32_t places, __half) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(places));
}
__device__ inline void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[4], uint32_t places, __nv_bfloat16) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(places));
}

}  // namespace sparseprune
