"""Optimal brain damage: what the curvature of the loss says a weight costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics import Statistic
from sparseprune.criteria.statistics.curvature import GaussNewtonDiagonal, HessianDiagonal
from sparseprune.criteria.statistics.gradients import SquaredGradient
from sparseprune.errors import bad, suggest

DIAGONALS = {
    "hessian": "hessian_diagonal",
    "fisher": "squared_gradient",
    "gauss_newton": "gauss_newton_diagonal",
}


@dataclass(frozen=True)
class OBD:
    """1/2 max(h_kk, 0) w_k^2, h_kk = d2L / dw_k2 of the mean loss. Higher is kept.

    The rise of the loss when weight k goes, at a minimum and with a diagonal Hessian. Negative
    curvature counts as none. (LeCun, Denker & Solla, 1990, Optimal Brain Damage.)

    diagonal: "hessian", by Hutchinson probes; "gauss_newton", the same without second derivatives
        of the network, as the paper computes it; "fisher", E[g^2] over single samples. The three
        rank differently.
    probes, seed: of the Hutchinson probes of a batch; not read for "fisher".
    Needs data and a loss; the score has the weight's shape, at least float32.
    """

    diagonal: str = "hessian"
    probes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.diagonal not in DIAGONALS:
            expected = " or ".join(map(repr, DIAGONALS))
            way_out = suggest(self.diagonal, DIAGONALS)
            raise bad("OBD", "diagonal", expected, repr(self.diagonal), way_out)

    @property
    def needs(self) -> tuple[Callable[[], Statistic], ...]:
        """The diagonal."""
        if self.diagonal == "fisher":
            return (SquaredGradient,)
        kind = HessianDiagonal if self.diagonal == "hessian" else GaussNewtonDiagonal
        return (partial(kind, self.probes, self.seed),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        diagonal = stats[DIAGONALS[self.diagonal]]
        return 0.5 * diagonal.clamp_min(0) * weight.to(diagonal.dtype).square()
