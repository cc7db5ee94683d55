"""Skeletonization: how much the error would rise without a unit."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.units import UnitGate


@measured(UnitGate, granularity="unit")
def skeletonization(weight: Tensor, stats: Stats) -> Tensor:
    """rho_i = E_without - E_with ~ -dE/dalpha_i at alpha_i = 1, alpha_i a factor on unit i.

    Higher is kept; a unit whose removal lowers the error is negative and goes first. (Mozer &
    Smolensky, 1989, Skeletonization.) The mean over the data, exact for them, in place
    of the paper's exponential average along training; pass loss=|output - target| summed for its
    linear error. Needs data and a loss; [units], at least float32.
    """
    return stats["unit_gate"]
