"""bitmask ops: schema, fake kernel, reference and gradient. Native code adds only kernels.

Sums are in float32 whatever the dtype of x, the weight and y, which share one.

A pruned weight contributes nothing to the output, even where the input is NaN or infinite
(a dense layer would compute 0 * inf = NaN there).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.formats.bitmask import MASK_BYTES, UNIT_ROWS, entries, unpack
from sparseprune.ops.dtypes import check_dtype
from sparseprune.ops.products import clamp_, clamp_grad, multiply
from sparseprune.ops.registration import register

_CLAMP = "float? low=None, float? high=None"

SCHEMAS = {
    "bitmask_linear": (
        "(Tensor x, Tensor values, Tensor masks, Tensor starts, Tensor? bias, int rows, int cols, "
        f"{_CLAMP}) -> Tensor"
    ),
    "bitmask_unpack": "(Tensor values, Tensor masks, int rows, int cols) -> Tensor",
}


def check_linear(
    x: Tensor,
    values: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
) -> None:
    """What bitmask_linear demands of its arguments, as csrc/ops/bitmask_cpu.cpp does."""
    torch._check(
        x.dim() >= 1 and x.shape[-1] == cols,
        lambda: (
            f"bitmask_linear: x must have {cols} features in its last dimension, "
            f"got {tuple(x.shape)}"
        ),
    )
    check_packed("bitmask_linear", x, values, masks, starts, bias, rows, cols)


def check_packed(
    op: str,
    x: Tensor,
    values: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
) -> None:
    """What every op demands of a packed weight, its bias, and the type and device of x."""
    check_dtype(op, x, values)
    torch._check(
        rows >= 0 and cols >= 0,
        lambda: f"{op}: rows and cols must be as made by Bitmask.pack, got {rows}, {cols}",
    )

    def check(argument: str, t: Tensor, dtype: torch.dtype, at_least: int) -> None:
        torch._check(
            t.device == x.device,
            lambda: f"{op}: {argument} must be on the device of x; move the module too",
        )
        torch._check(
            t.dtype == dtype and t.is_contiguous() and t.numel() >= at_least,
            lambda: (
                f"{op}: {argument} must be as made by Bitmask.pack, contiguous and at least "
                f"{at_least} long, got {t.numel()} elements of {t.dtype}; convert the model again"
            ),
        )

    units = -(-rows // UNIT_ROWS)
    if bias is not None:
        check("bias", bias, x.dtype, rows)
    check("values", values, x.dtype, 0)
    check("masks", masks, torch.uint8, units * cols * MASK_BYTES)
    check("starts", starts, torch.int32, units + 1)


def linear_reference(
    x: Tensor,
    values: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias) over the nonzeros of W alone; x [..., cols] -> [..., rows]."""
    check_linear(x, values, masks, starts, bias, rows, cols)
    row, column = entries(masks)
    tokens = x.reshape(x.shape[:-1].numel(), cols).float()
    y = multiply(tokens, values.float(), row, column, rows)
    if bias is not None:
        y += bias
    return clamp_(y, low, high).to(x.dtype).view(*x.shape[:-1], rows)


def _linear_fake(x, values, masks, starts, bias, rows, cols, low=None, high=None):  # type: ignore[no-untyped-def]
    check_linear(x, values, masks, starts, bias, rows, cols)
    return x.new_empty(*x.shape[:-1], rows)


def _unpack_fake(values, masks, rows, cols):  # type: ignore[no-untyped-def]
    return values.new_empty(rows, cols)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, values, masks, _, bias, *ctx.sizes, ctx.low, ctx.high = inputs
    ctx.clamped = ctx.low is not None or ctx.high is not None
    ctx.save_for_backward(values, masks, *((output,) if ctx.clamped else ()))
    ctx.has_bias = bias is not None


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    values, masks, *output = ctx.saved_tensors
    weight = torch.ops.sparseprune.bitmask_unpack(values, masks, *ctx.sizes)
    if ctx.clamped:
        grad = clamp_grad(grad, output[0], ctx.low, ctx.high)
    grad_bias = grad.reshape(-1, weight.shape[0]).sum(0) if ctx.has_bias else None
    return grad @ weight, None, None, None, grad_bias, *(None,) * 4


register(
    ("sparseprune", "sparseprune_reference"),
    SCHEMAS,
    {
        "bitmask_linear": (linear_reference, _linear_fake),
        "bitmask_unpack": (unpack, _unpack_fake),
    },
    {"bitmask_linear": (_save, _backward)},
)
