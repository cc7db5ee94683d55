"""Mean activation: units that are rarely or weakly on."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.units import UnitMean


@measured(UnitMean, granularity="unit")
def mean_activation(weight: Tensor, stats: Stats) -> Tensor:
    """E[z] over samples and positions, z after batch norm and nonlinearity. Higher is kept.

    (Polyak & Wolf, 2015, IEEE Access; Molchanov et al., 2017,
    arXiv:1611.06440.) Signed: a unit of a layer without ReLU may be low and matter. Needs data, no
    loss; [units], at least float32.
    """
    return stats["unit_mean"]
