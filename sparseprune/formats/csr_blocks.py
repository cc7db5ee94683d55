"""How wide the column blocks of the csr layouts "groups" and "sorted" are."""

from __future__ import annotations

from collections.abc import Iterable

MAX_BLOCK = 255
"""A column within its block, and a count of columns, fit in a byte."""
STEP = 16
"""Activations are transposed in tiles of 16 columns; a block should hold whole ones."""
WIDEST = MAX_BLOCK // STEP * STEP
L1_COLUMNS = 128
"""128 panel rows of 64 floats are 32 KB: an L1 cache of 48 KB has room for sums and weights too."""


def block_width(cols: int, about: int = L1_COLUMNS) -> int:
    """Columns of a block: equal blocks of about this width, in whole steps."""
    blocks = max(1, round(cols / about), -(-cols // WIDEST))
    steps = -(-cols // (blocks * STEP))
    return max(STEP, steps * STEP)


def widths(cols: int, abouts: Iterable[int]) -> list[int]:
    """The different widths of blocks near these."""
    return list(dict.fromkeys(block_width(cols, about) for about in abouts))
