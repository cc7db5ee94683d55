"""Whether the buffers of a BlockWeight can be trusted: kernels read and write where they point."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, PackedWeight
from sparseprune.formats.block import MAX_SIDE, BlockWeight, rows_of

MAX_WEIGHTS = 2**31


def check(weight: PackedWeight) -> None:
    """Everything that a kernel relies on, read from the buffers themselves.

    Raises:
        ValueError: a buffer that would make a kernel leave its memory, or is not what pack makes.
    """
    if not isinstance(weight, BlockWeight):
        raise bad("block_check", "weight", "a BlockWeight", type(weight).__name__, "pack it again")
    reason = _wrong_sizes(weight) or _wrong_types(weight) or _wrong_places(weight)
    if reason is not None:
        raise bad("block_check", "packed weight", "as made by Block.pack", reason, "pack it again")


def check_groups(weight: PackedWeight, groups: int) -> None:
    """What a convolution of that many channel groups needs of its packed weight.

    Raises:
        ValueError: rows of one block belong to two groups.
    """
    bound = weight.values.shape[1] if isinstance(weight, BlockWeight) else 1
    if weight.rows % groups or (groups > 1 and weight.rows // groups % bound):
        expected = f"divisible by {groups} groups, each by {bound}"
        raise bad("block_check", "rows", expected, weight.rows, "pack it again")


def _wrong_sizes(weight: BlockWeight) -> str | None:
    for name in ("rows", "cols", "taps"):
        size = getattr(weight, name)
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    if weight.taps < 1 or weight.cols % weight.taps:
        return f"{weight.cols} columns of {weight.taps} taps"
    return None


def _wrong_types(weight: BlockWeight) -> str | None:
    shape = weight.values.shape
    if len(shape) != 3 or not 1 <= min(shape[1:]) <= max(shape[1:]) <= MAX_SIDE:
        return f"values of shape {tuple(shape)}"
    if weight.values.dtype not in DTYPES:
        return f"values of {weight.values.dtype}"
    expected = {
        "values": (weight.values.dtype, tuple(shape)),
        "columns": (torch.int32, (shape[0],)),
        "starts": (torch.int32, (-(-weight.rows // shape[1]) + 1,)),
    }
    for name, (dtype, sizes) in expected.items():
        buffer: Tensor = getattr(weight, name)
        if buffer.dtype != dtype or tuple(buffer.shape) != sizes or not buffer.is_contiguous():
            return f"{name} of {buffer.dtype} {tuple(buffer.shape)}, expected {dtype} {sizes}"
    return None


def _wrong_places(weight: BlockWeight) -> str | None:
    blocks, r, c = weight.values.shape
    starts, columns = weight.starts.long(), weight.columns.long()
    if int(starts[0]) != 0 or int(starts[-1]) != blocks or bool((starts.diff() < 0).any()):
        return "starts that do not lead from 0 to the number of blocks"
    wide = -(-weight.cols // c)
    if blocks and not 0 <= int(columns.min()) <= int(columns.max()) < wide:
        return f"columns outside of the {wide} blocks of a row"
    row = rows_of(weight.starts, blocks)
    if bool(((columns.diff() <= 0) & (row.diff() == 0)).any()):
        return "columns that do not ascend within their row"
    beyond_rows = weight.values[row == len(starts) - 2, weight.rows - (len(starts) - 2) * r :]
    beyond_cols = weight.values[columns == wide - 1][..., weight.cols - (wide - 1) * c :]
    if bool((beyond_rows != 0).any()) or bool((beyond_cols != 0).any()):
        return f"values past {weight.rows} rows or {weight.cols} columns"
    return None
