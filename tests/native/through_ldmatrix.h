// ldmatrix.x4 as a map of places, by kernels/cuda/mma_fragments.h.
#pragma once
#include "kernels/cuda/mma_fragments.h"

// What ldmatrix.x4 gives lane `lane` in element i of register j, as a place of the tile whose rows
// and chunks of 8 the lanes bring.
template <typename Address>
inline sparseprune::mma::Place through_ldmatrix(const Address& address, int lane, int j, int i) {
  const sparseprune::mma::Place in_matrix = sparseprune::mma::loaded_place(lane, i);
  const sparseprune::mma::Place brought = address(8 * j + in_matrix.row);
  return {brought.row, brought.col * 8 + in_matrix.col};
}
