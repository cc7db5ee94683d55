"""Taylor: how much the loss changes when the weight goes, to first or second order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.curvature import HessianDiagonal
from sparseprune.criteria.statistics.gradients import AbsoluteGradient, Gradient


@measured(Gradient)
def taylor(weight: Tensor, stats: Stats) -> Tensor:
    """|g w|, g = dL/dw of the mean loss over all samples. Higher is kept.

    |dL| to first order for dw = -w: exact where the loss is linear in the weight. The mean comes
    before the absolute value, so that samples which pull apart cancel; `taylor_samples` is the
    other order. Needs data and a loss; the score has the weight's shape, at least float32.
    (Molchanov et al., 2019, arXiv:1906.10771, there squared.)
    """
    return (weight * stats["gradient"]).abs()


@measured(AbsoluteGradient)
def taylor_samples(weight: Tensor, stats: Stats) -> Tensor:
    """E_n |g_n w|, g_n of single sample n. Higher is kept.

    `taylor` with the absolute value before the mean; every sample is run by itself.
    """
    return weight.abs() * stats["absolute_gradient"]


@dataclass(frozen=True)
class Taylor2:
    """|-g w + 1/2 h w^2|, g = dL/dw, h = d2L/dw2 of the mean loss. Higher is kept.

    |dL| to second order for dw = -w, without the mixed terms: exact for a quadratic loss and one
    weight. h by `probes` Hutchinson probes a batch, from `seed` (see `HessianDiagonal`). Needs
    data and a loss; the score has the weight's shape, at least float32.
    """

    probes: int = 8
    seed: int = 0

    @property
    def needs(self) -> tuple[partial[HessianDiagonal] | type[Gradient], ...]:
        """Gradient and diagonal of the Hessian, in one pass."""
        return Gradient, partial(HessianDiagonal, self.probes, self.seed)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        first = weight * stats["gradient"]
        return (0.5 * stats["hessian_diagonal"] * weight.to(first.dtype).square() - first).abs()
