"""The gradients of a packed layer's input and bias: those of the dense layer, its weight unpacked.

The ops keep what they need in ctx: ``save`` before, ``linear`` or ``conv2d`` after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.grad import conv2d_input

from sparseprune.ops.products import clamp_grad

Unpack = Callable[..., Tensor]
"""(*packed, *sizes) -> the dense weight [rows, cols]."""
Grads = tuple[Tensor, Tensor | None]
"""Of x, and of the bias where there is one."""


def save(
    ctx: Any,
    packed: Sequence[Tensor],
    sizes: Sequence[int],
    bias: Tensor | None,
    output: Tensor,
    low: float | None,
    high: float | None,
) -> None:
    """The packed weight, and the output where limits may have cut it."""
    ctx.clamped = low is not None or high is not None
    ctx.save_for_backward(*packed, *((output,) if ctx.clamped else ()))
    ctx.sizes, ctx.has_bias, ctx.low, ctx.high = sizes, bias is not None, low, high


def _restore(ctx: Any, grad: Tensor, unpack: Unpack) -> tuple[Tensor, Tensor]:
    """The dense weight, and the gradient before the limits."""
    packed = ctx.saved_tensors
    if ctx.clamped:
        *packed, output = packed
        grad = clamp_grad(grad, output, ctx.low, ctx.high)
    return unpack(*packed, *ctx.sizes), grad


def linear(ctx: Any, grad: Tensor, unpack: Unpack) -> Grads:
    """Of y = clamp(x W^T + bias)."""
    weight, grad = _restore(ctx, grad, unpack)
    grad_bias = grad.reshape(-1, weight.shape[0]).sum(0) if ctx.has_bias else None
    return grad @ weight, grad_bias


def conv2d(ctx: Any, grad: Tensor, unpack: Unpack) -> Grads:
    """Of the convolution whose input had ``ctx.shape``, with ``ctx.window``: sizes and groups."""
    kernel_size, stride, padding, dilation, groups = ctx.window
    weight, grad = _restore(ctx, grad, unpack)
    weight = weight.view(weight.shape[0], -1, *kernel_size)
    grad_x = conv2d_input(ctx.shape, weight, grad, stride, padding, dilation, groups)
    return grad_x, grad.sum((0, 2, 3)) if ctx.has_bias else None
