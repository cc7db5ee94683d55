"""How wide the column blocks of the csr layouts "groups" and "sorted" are."""

from __future__ import annotations

MAX_BLOCK = 240
"""A column within its block, and a count of columns, fit in a byte."""
L1_COLUMNS = 128
"""128 panel rows of 64 floats are 32 KB: an L1 cache of 48 KB has room for sums and weights too."""
STEP = 16
"""Activations are transposed in tiles of 16 columns; a block should hold whole ones."""


def block_width(cols: int) -> int:
    """Columns of a block: equal blocks near L1_COLUMNS, in whole steps."""
    blocks = max(1, round(cols / L1_COLUMNS), -(-cols // MAX_BLOCK))
    steps = -(-cols // (blocks * STEP))
    return max(STEP, steps * STEP)
