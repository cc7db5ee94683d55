"""FPGM: filters near the geometric median of their layer say nothing new."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats, measured


@measured(granularity="unit")
def fpgm(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """sum_j ||w_i - w_j||_2 over all units j of the layer. Higher is kept.

    The lowest lies nearest to the geometric median, whatever its norm. Meaningful within a layer:
    use scope "local". (He et al., 2019, arXiv:1811.00250.) [units], at least float32.
    """
    return distances(weight).sum(1)


def distances(weight: Tensor) -> Tensor:
    """||w_i - w_j||_2 for all pairs of units: [units, units], exactly zero for equal ones."""
    rows = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
