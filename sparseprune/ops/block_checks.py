"""What the block ops demand of their arguments: for fake kernels and references, which must refuse
what compiled kernels refuse (csrc/ops/block_args.h)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparseprune.formats.block import MAX_SIDE
from sparseprune.ops.dtypes import check_dtype
from sparseprune.ops.windows import check_window


def check_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
) -> None:
    """The arguments of block_linear."""
    torch._check(
        x.dim() >= 1 and x.shape[-1] == cols,
        lambda: (
            f"block_linear: x must have {cols} features in its last dimension, got {tuple(x.shape)}"
        ),
    )
    check_packed("block_linear", x, values, columns, starts, bias, rows, cols)


def check_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    taps: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The arguments of block_conv2d."""
    op = "block_conv2d"
    check_window(op, x, rows, cols, kernel_size, stride, padding, dilation, groups)
    check_packed(op, x, values, columns, starts, bias, rows, cols)
    torch._check(
        taps in (1, prod(kernel_size)),
        lambda: f"{op}: taps must be 1 or {prod(kernel_size)}, the size of the kernel, got {taps}",
    )
    side = values.shape[1]
    torch._check(
        groups == 1 or rows // groups % side == 0,
        lambda: (
            f"{op}: outputs per group must divide by the {side} rows of a block, "
            f"got {rows // groups}; pack the weight with its number of groups"
        ),
    )


def check_packed(
    op: str,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
) -> None:
    """What every op demands of a packed weight, its bias, and the type and device of x."""
    check_dtype(op, x, values)
    torch._check(
        rows >= 0 and cols >= 0,
        lambda: f"{op}: rows and cols must be as made by Block.pack, got {rows}, {cols}",
    )
    torch._check(
        values.dim() == 3 and min(values.shape[1:]) >= 1 and max(values.shape[1:]) <= MAX_SIDE,
        lambda: (
            f"{op}: values must be [blocks, rows, columns] with sides of 1 to {MAX_SIDE}, "
            f"as made by Block.pack, got {tuple(values.shape)}"
        ),
    )

    def check(argument: str, t: Tensor, dtype: torch.dtype, at_least: int) -> None:
        torch._check(
            t.device == x.device,
            lambda: f"{op}: {argument} must be on the device of x; move the module too",
        )
        torch._check(
            t.dtype == dtype and t.is_contiguous() and t.numel() >= at_least,
            lambda: (
                f"{op}: {argument} must be as made by Block.pack, {dtype}, contiguous and at least "
                f"{at_least} long, got {t.numel()} elements of {t.dtype}; convert the model again"
            ),
        )

    if bias is not None:
        check("bias", bias, x.dtype, rows)
    check("values", values, x.dtype, 0)
    check("columns", columns, torch.int32, values.shape[0])
    check("starts", starts, torch.int32, -(-rows // values.shape[1]) + 1)
