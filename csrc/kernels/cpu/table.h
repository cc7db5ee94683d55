// table.def as data, and the choice of a kernel from it.
#pragma once
#include <vector>

#include "kernels/cpu/bitmask.h"
#include "kernels/cpu/csr.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/nm.h"
#include "kernels/cpu/panel.h"
#include "kernels/cpu/planes.h"
#include "kernels/cpu/sell.h"

namespace sparseprune {

struct KernelRow {
  const char* stem;
  const char* dtype;
  Isa isa;
  const void* kernels;  // the stem's struct of functions
};

const std::vector<KernelRow>& kernel_table();

// The first row of the table that current_isa() allows.
const BitmaskKernels& bitmask_kernels();
BitmaskKernels::Linear bitmask_linear_kernel();  // the faster one of bitmask_kernels() on this CPU
const CsrKernels& csr_kernels();
CsrKernels::Gather csr_gather_kernel();  // the faster one of csr_kernels() on this CPU
const DenseKernels& dense_kernels();
const NmKernels& nm_kernels();
const PanelKernels& panel_kernels();
const PlaneKernels& plane_kernels();
const SellKernels& sell_kernels();

}  // namespace sparseprune
