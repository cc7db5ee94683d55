"""The two orders that columns of a convolution's weight may have in a packed weight."""

from __future__ import annotations

from torch import Tensor


def taps_first(matrix: Tensor, taps: int) -> Tensor:
    """Columns (channel, tap) as (tap, channel); with the number of channels, back again."""
    rows, cols = matrix.shape
    return matrix.view(rows, cols // taps, taps).transpose(1, 2).reshape(rows, cols)
