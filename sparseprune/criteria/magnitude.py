"""Magnitude: the weight's absolute value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sparseprune.criteria import Stats


def magnitude(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """|w|. Higher is kept. (Han et al., 2015, arXiv:1506.02626)

    weight: any shape, real dtype; the score has the same shape and dtype. `stats` is not read.
    """
    return weight.abs()
