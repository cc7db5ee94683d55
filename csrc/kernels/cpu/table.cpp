#include "kernels/cpu/table.h"

#include <cstring>
#include <stdexcept>

namespace sparseprune {

#define KERNEL(stem, type, dtype, isa) extern const type stem##_##isa;
#include "kernels/cpu/table.def"
#undef KERNEL

const std::vector<KernelRow>& kernel_table() {
  static const std::vector<KernelRow> rows = {
#define KERNEL(stem, type, dtype, isa) {#stem, #dtype, Isa::isa, &stem##_##isa},
#include "kernels/cpu/table.def"
#undef KERNEL
  };
  return rows;
}

static const void* choose(const char* stem) {
  for (const KernelRow& row : kernel_table())
    if (row.isa <= current_isa() && std::strcmp(row.stem, stem) == 0) return row.kernels;
  throw std::logic_error(std::string("no CPU kernel for ") + stem);
}

const BitmaskKernels& bitmask_kernels() {
  return *static_cast<const BitmaskKernels*>(choose("bitmask"));
}
BitmaskKernels::Linear bitmask_linear_kernel() {
  const BitmaskKernels& k = bitmask_kernels();
  return k.linear_by_counts && slow_expands() ? k.linear_by_counts : k.linear;
}
const CsrKernels& csr_kernels() { return *static_cast<const CsrKernels*>(choose("csr")); }
CsrKernels::Gather csr_gather_kernel() {
  return slow_gathers() ? csr_kernels().gather_by_inserts : csr_kernels().gather;
}
const DenseKernels& dense_kernels() { return *static_cast<const DenseKernels*>(choose("dense")); }
const NmKernels& nm_kernels() { return *static_cast<const NmKernels*>(choose("nm")); }
const PanelKernels& panel_kernels() { return *static_cast<const PanelKernels*>(choose("panel")); }
const PlaneKernels& plane_kernels() { return *static_cast<const PlaneKernels*>(choose("planes")); }
const SellKernels& sell_kernels() { return *static_cast<const SellKernels*>(choose("sell")); }

}  // namespace sparseprune
