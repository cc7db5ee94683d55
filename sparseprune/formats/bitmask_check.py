"""Whether the buffers of a BitmaskWeight can be trusted: kernels read where they point."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, PackedWeight
from sparseprune.formats.bitmask import (
    MASK_BYTES,
    UNIT_ROWS,
    BitmaskWeight,
    kept_positions,
)

MAX_WEIGHTS = 2**31


def check(weight: PackedWeight) -> None:
    """Everything that a kernel relies on, read from the buffers themselves.

    Raises:
        ValueError: a buffer that would make a kernel leave its memory, or is not what pack makes.
    """
    if not isinstance(weight, BitmaskWeight):
        raise bad("bitmask_check", "weight", "a BitmaskWeight", type(weight).__name__,
                  "pack it again")  # fmt: skip
    reason = _wrong_sizes(weight) or _wrong_types(weight) or _wrong_bits(weight)
    if reason is not None:
        raise bad("bitmask_check", "packed weight", "as made by Bitmask.pack", reason,
                  "pack it again")  # fmt: skip


def check_groups(weight: PackedWeight, groups: int) -> None:
    """No convolution can hold this format.

    Raises:
        ValueError: always.
    """
    raise bad("bitmask_check", "layer", "a Linear", f"a convolution of {groups} groups",
              "pack it with Csr()")  # fmt: skip


def _wrong_sizes(weight: BitmaskWeight) -> str | None:
    for name, size in {"rows": weight.rows, "cols": weight.cols}.items():
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    return None


def _wrong_types(weight: BitmaskWeight) -> str | None:
    units = -(-weight.rows // UNIT_ROWS)
    dtype = weight.values.dtype if weight.values.dtype in DTYPES else DTYPES[0]
    expected = {
        "values": (dtype, (weight.values.numel(),)),
        "masks": (torch.uint8, (units, weight.cols, MASK_BYTES)),
        "starts": (torch.int32, (units + 1,)),
    }
    for name, (dtype, shape) in expected.items():
        buffer: Tensor = getattr(weight, name)
        if buffer.dtype != dtype or tuple(buffer.shape) != shape or not buffer.is_contiguous():
            return f"{name} of {buffer.dtype} {tuple(buffer.shape)}, expected {dtype} {shape}"
    return None


def _wrong_bits(weight: BitmaskWeight) -> str | None:
    kept = kept_positions(weight.masks)  # [units, cols, 64]
    expected = torch.zeros_like(weight.starts, dtype=torch.int64)
    expected[1:] = kept.sum((1, 2)).cumsum(0)
    if not torch.equal(weight.starts.long(), expected):
        return "starts that contradict masks"
    if int(weight.starts[-1]) != weight.values.numel():
        return f"{weight.values.numel()} values for {int(weight.starts[-1])} bits"
    over = weight.rows % UNIT_ROWS
    if over and bool(kept[-1, :, over:].any()):
        return f"values in rows past {weight.rows}"
    return None
