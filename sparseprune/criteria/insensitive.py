"""Insensitive: weights that training hardly changed."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.trajectory import Initial


@measured(Initial)
def insensitive(weight: Tensor, stats: Stats) -> Tensor:
    """|w - w_0|, w_0 the weight before training. Higher is kept.

    data: the `Trajectory` of the training; no loss is read. `reset_insensitive` puts the lowest
    back to w_0 instead of to zero. The score has the weight's shape, at least float32.
    """
    initial = stats["initial"]
    return (weight.to(initial.dtype) - initial).abs()
