"""Magnitude: the weight's absolute value, or its square."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats


def magnitude(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """|w|. Higher is kept. (Han et al., 2015, arXiv:1506.02626)

    weight: any shape, real dtype; the score has the same shape and dtype. `stats` is not read.
    """
    return weight.abs()


def magnitude_l2(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """w^2. Higher is kept.

    Ranks single weights as `magnitude` does; a pattern that pools a group of weights (filter,
    channel, block) then ranks groups by their L2 norm instead of L1.
    weight: any shape, real dtype; the score has the same shape, at least float32.
    """
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).square()
