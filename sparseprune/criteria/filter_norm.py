"""Filter norm: the size of a unit's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.errors import bad


@dataclass(frozen=True)
class FilterNorm:
    """(sum_j |w_fj|^p)^(1/p) of unit f, over all its inputs and its kernel. Higher is kept.

    (p = 1: Li et al., 2016, arXiv:1608.08710; p = 2: the L2 norm of a filter.) [units], at least
    float32. Larger filters have larger norms; scope "local" compares only within a layer. For the
    norm of an input channel use criterion "magnitude" or "magnitude_l2" with pattern "channel".
    """

    p: int = 1
    granularity: Granularity = "unit"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise bad("FilterNorm", "p", "1 or 2", self.p, "pass one of these")

    def __call__(self, weight: Tensor, stats: Stats | None = None) -> Tensor:
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
        norm: Tensor = torch.linalg.vector_norm(exact, self.p, dim=1)
        return norm
