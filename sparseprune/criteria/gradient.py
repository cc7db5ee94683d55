"""Gradient: how steeply the loss depends on the weight."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.gradients import Gradient


@measured(Gradient)
def gradient(weight: Tensor, stats: Stats) -> Tensor:
    """|g|, g = dL/dw of the mean loss over all samples. Higher is kept.

    The rate of the first-order expansion dL = g dw (see `taylor`), whatever the size of w.
    Needs data and a loss; the score has the weight's shape, at least float32.
    """
    return stats["gradient"].abs()
