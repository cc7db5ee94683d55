"""Taylor on activations: how much the loss changes when a unit's output goes to zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.units import UnitTaylor


@dataclass(frozen=True)
class TaylorActivation:
    """E_n |1/M sum_m z_m dC_n/dz_m|, divided by the layer's L2 norm of it. Higher is kept.

    z the unit's activation after batch norm and nonlinearity, M its positions; the absolute value
    comes after the mean over positions, sample by sample: E(y) = 0 says nothing, E|y| does.
    (Molchanov et al., 2017, arXiv:1611.06440.)

    normalised: whether to divide by the layer's norm, for scope "global"; a layer of zeros stays.
    The loss must be the mean (or sum) of each sample's own. Needs data and a loss; [units], at
    least float32.
    """

    normalised: bool = True
    granularity: Granularity = "unit"
    needs = (UnitTaylor,)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        score = stats["unit_taylor"]
        return by_layer_norm(score) if self.normalised else score


def by_layer_norm(score: Tensor) -> Tensor:
    """score / ||score||_2, zeros if the norm is zero."""
    norm = score.norm()
    return score / norm if norm > 0 else score
