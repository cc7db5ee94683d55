"""What becomes of the sums of every kernel."""

from __future__ import annotations

import triton
import triton.language as tl

LEAST = 16
"""The smallest side of a product of tensor cores."""


@triton.jit  # type: ignore[untyped-decorator]
def finish(sums, bias, row, rows, low, high, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bias [rows] and limits; sums [tokens, rows of the program]."""
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    sums = tl.where(sums < low, low, sums)
    return tl.where(sums > high, high, sums)
