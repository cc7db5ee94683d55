"""What the nm ops demand of their arguments: for fake kernels and references, which must refuse
what compiled kernels refuse (csrc/ops/nm_args.h)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparseprune.formats.nm import MAX_M, padded_groups, place_bits
from sparseprune.ops.dtypes import check_dtype
from sparseprune.ops.windows import check_window


def check_linear(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
) -> None:
    """The arguments of nm_linear."""
    torch._check(
        x.dim() >= 1 and x.shape[-1] == cols,
        lambda: (
            f"nm_linear: x must have {cols} features in its last dimension, got {tuple(x.shape)}"
        ),
    )
    check_packed("nm_linear", x, values, places, bias, rows, cols, n, m)


def check_conv2d(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
    taps: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The arguments of nm_conv2d."""
    op = "nm_conv2d"
    check_window(op, x, rows, cols, kernel_size, stride, padding, dilation, groups)
    check_packed(op, x, values, places, bias, rows, cols, n, m)
    torch._check(
        taps in (1, prod(kernel_size)),
        lambda: f"{op}: taps must be 1 or {prod(kernel_size)}, the size of the kernel, got {taps}",
    )


def check_packed(
    op: str,
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
) -> None:
    """What every op demands of a packed weight, its bias, and the type and device of x."""
    check_dtype(op, x, values)
    torch._check(
        rows >= 0 and cols >= 0,
        lambda: f"{op}: rows and cols must be as made by Nm.pack, got {rows}, {cols}",
    )
    torch._check(
        1 <= n < m <= MAX_M,
        lambda: f"{op}: n and m must be 1 <= n < m <= {MAX_M}, got {n}, {m}",
    )

    def check(argument: str, t: Tensor, dtype: torch.dtype, length: int) -> None:
        torch._check(
            t.device == x.device,
            lambda: f"{op}: {argument} must be on the device of x; move the module too",
        )
        torch._check(
            t.dtype == dtype and t.is_contiguous() and t.numel() >= length,
            lambda: (
                f"{op}: {argument} must be as made by Nm.pack, {dtype}, contiguous and at least "
                f"{length} long, got {t.numel()} elements of {t.dtype}; convert the model again"
            ),
        )

    wide = padded_groups(cols, m) * n
    if bias is not None:
        check("bias", bias, x.dtype, rows)
    check("values", values, x.dtype, rows * wide)
    check("places", places, torch.uint8, rows * wide * place_bits(m) // 8)
