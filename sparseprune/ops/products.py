"""What the references of every format share."""

from __future__ import annotations

from torch import Tensor

CHUNK = 1 << 22
"""Products that a reference holds at once."""


def multiply(x: Tensor, values: Tensor, row: Tensor, column: Tensor, rows: int) -> Tensor:
    """y[t, r] = sum over the nonzeros of row r; x [tokens, cols] -> y [tokens, rows]."""
    y = x.new_zeros(x.shape[0], rows)
    step = max(1, CHUNK // max(1, values.numel()))
    for start in range(0, x.shape[0], step):
        y[start : start + step].index_add_(1, row, x[start : start + step, column] * values)
    return y


def clamp_(y: Tensor, low: float | None, high: float | None) -> Tensor:
    """y, cut at the limits that are not None, in place."""
    return y if low is None and high is None else y.clamp_(low, high)


def clamp_grad(grad: Tensor, output: Tensor, low: float | None, high: float | None) -> Tensor:
    """The gradient before :func:`clamp_`: 0 where it cut, as in torch."""
    if low is not None:
        grad = grad * (output > low)
    if high is not None:
        grad = grad * (output < high)
    return grad
