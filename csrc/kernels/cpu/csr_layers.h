// Linear layers with a csr weight: tiles of tokens times chunks of rows, over threads.
// No torch: the caller brings the threads.
#pragma once
#include <cstdint>

#include "formats/clamp.h"
#include "formats/csr.h"
#include "kernels/cpu/threads.h"

namespace sparseprune {

constexpr int64_t kGatherTokens = 4;  // up to here gathering x beats making a panel

// y[t, r] = clamp(bias[r] + sum_c W[r, c] x[t, c]); x [tokens, cols], y [tokens, rows], both dense.
void csr_linear(const CsrRows& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp = {});
void csr_linear(const CsrGroups& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp = {});
void csr_linear(const CsrSorted& w, const float* x, int64_t tokens, const float* bias, float* y,
                const Threads& threads, Clamp clamp = {});

}  // namespace sparseprune
