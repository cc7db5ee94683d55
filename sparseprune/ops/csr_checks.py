"""What the csr ops demand of their arguments: for fake kernels and references, which must refuse
what compiled kernels refuse (csrc/ops/csr_args.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseprune.formats.base import DTYPES
from sparseprune.formats.csr import bound_rows
from sparseprune.formats.csr_groups import BOUND_ROWS as GROUP_ROWS
from sparseprune.formats.csr_groups import NUMBERED, PATTERNS, SEGMENT
from sparseprune.formats.csr_sorted import BOUND_ROWS as SEGMENT_ROWS
from sparseprune.formats.csr_sorted import PAIR
from sparseprune.ops.dtypes import check_dtype
from sparseprune.ops.windows import check_window

MAX_BLOCK = 255


def check_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
) -> None:
    """The arguments of csr_linear."""
    torch._check(
        x.dim() >= 1 and x.shape[-1] == cols,
        lambda: (
            f"csr_linear: x must have {cols} features in its last dimension, got {tuple(x.shape)}"
        ),
    )
    dtypes = DTYPES if block == 0 else DTYPES[:1]
    check_packed("csr_linear", x, values, columns, counts, starts, bias, rows, cols, block, dtypes)


def check_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The arguments of csr_conv2d."""
    op = "csr_conv2d"
    check_window(op, x, rows, cols, kernel_size, stride, padding, dilation, groups)
    check_packed(op, x, values, columns, counts, starts, bias, rows, cols, block)
    if groups > 1:
        bound = bound_rows(counts)
        torch._check(
            rows // groups % bound == 0,
            lambda: (
                f"{op}: outputs per group must divide by {bound} in this layout, "
                f'got {rows // groups}; pack with the layout "rows"'
            ),
        )


def check_packed(
    op: str,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    dtypes: Sequence[torch.dtype] = DTYPES[:1],
) -> None:
    """What every op demands of a packed weight, its bias, and the type and device of x."""
    check_dtype(op, x, values, dtypes)
    torch._check(
        rows >= 0 and cols >= 0 and 0 <= block <= MAX_BLOCK,
        lambda: (
            f"{op}: rows, cols and block must be as made by Csr.pack, got {rows}, {cols}, {block}"
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
                f"{op}: {argument} must be as made by Csr.pack, contiguous and at least "
                f"{at_least} long, got {t.numel()} elements of {t.dtype}; convert the model again"
            ),
        )

    if bias is not None:
        check("bias", bias, x.dtype, rows)
    check("values", values, x.dtype, 0)
    if block == 0:
        check("columns", columns, torch.uint16, values.numel())
        check("starts", starts, torch.int32, rows + 1)
        return
    last = counts.shape[-1] if counts.dim() == 3 else 0
    torch._check(
        last in (PATTERNS, NUMBERED, PAIR) and (last != NUMBERED or rows % SEGMENT == 0),
        lambda: (
            f"{op}: counts must be [blocks, groups, 15], [blocks, groups, 19] with rows that "
            f"divide by {SEGMENT}, or [blocks, pairs, 5], as made by Csr.pack, "
            f"got {tuple(counts.shape)} for {rows} rows"
        ),
    )
    blocks = -(-cols // block)
    cells = blocks * -(-rows // (SEGMENT_ROWS if last == PAIR else GROUP_ROWS))
    bundles = blocks * -(-rows // 2) if last == PAIR else cells
    check("columns", columns, torch.uint8, 0)
    check("counts", counts, torch.uint8, last * bundles)
    check("starts", starts, torch.int32, 2 * (cells + 1))
