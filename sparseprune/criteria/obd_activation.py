"""Optimal brain damage on units: the curvature of the loss along a unit's output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.units import UnitCurvature


@dataclass(frozen=True)
class OBDActivation:
    """1/2 max(E_n[z^T (d2C_n/dz2) z], 0), z the unit's activation map. Higher is kept.

    For a unit of one number 1/2 z^2 d2C/dz2: the rise of the loss at a minimum when z goes to
    zero. (Molchanov et al., 2017, arXiv:1611.06440) Negative curvature counts as
    none. By `probes` Hutchinson probes over units a batch, from `seed`. Needs data and a loss;
    [units], at least float32.
    """

    probes: int = 8
    seed: int = 0
    granularity: Granularity = "unit"

    @property
    def needs(self) -> tuple[partial[UnitCurvature]]:
        """The curvature along each unit."""
        return (partial(UnitCurvature, self.probes, self.seed),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        return 0.5 * stats["unit_curvature"].clamp_min(0)
