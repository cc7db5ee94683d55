"""Movement: weights that training moved away from zero."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.trajectory import Movement


@measured(Movement)
def movement(weight: Tensor, stats: Stats) -> Tensor:
    """-sum_t w_t dL/dw_t over the steps t of a training. Higher is kept.

    Positive where a step of gradient descent moved the weight away from zero.
    (Sanh et al., 2020, arXiv:2005.07683, with a learning rate of 1 for the scores.)
    data: the `Trajectory` of that training; no loss is read. The paper masks in the forward pass
    while it trains; prune in rounds for that. The score has the weight's shape, at least float32.
    """
    return stats["movement"]
