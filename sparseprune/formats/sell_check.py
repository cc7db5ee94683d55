"""Whether the buffers of a SellWeight can be trusted: kernels read where they point."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, PackedWeight
from sparseprune.formats.sell import (
    BEGIN,
    KEPT,
    MAX_COLS,
    SLICE_ROWS,
    WINDOW,
    SellWeight,
    entries,
)

MAX_WEIGHTS = 2**31
BATCH = 2**14
"""Steps that are looked at together."""


def check(weight: PackedWeight) -> None:
    """Everything that a kernel relies on, read from the buffers themselves.

    Raises:
        ValueError: a buffer that would make a kernel leave its memory, or is not what pack makes.
    """
    if not isinstance(weight, SellWeight):
        raise bad("sell_check", "weight", "a SellWeight", type(weight).__name__, "pack it again")
    reason = (_wrong_sizes(weight) or _wrong_types(weight) or _wrong_steps(weight)
              or _wrong_places(weight))  # fmt: skip
    if reason is not None:
        raise bad("sell_check", "packed weight", "as made by Sell.pack", reason, "pack it again")


def check_groups(weight: PackedWeight, groups: int) -> None:
    """No convolution can hold this format.

    Raises:
        ValueError: always.
    """
    raise bad("sell_check", "layer", "a Linear", f"a convolution of {groups} groups",
              "pack it with Csr()")  # fmt: skip


def _wrong_sizes(weight: SellWeight) -> str | None:
    for name, size in {"rows": weight.rows, "cols": weight.cols}.items():
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.cols > MAX_COLS or weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    return None


def _wrong_types(weight: SellWeight) -> str | None:
    slices, steps = -(-weight.rows // SLICE_ROWS), weight.windows.numel()
    dtype = weight.values.dtype if weight.values.dtype in DTYPES else DTYPES[0]
    expected = {
        "values": (dtype, (steps * SLICE_ROWS,)),
        "columns": (torch.uint8, (steps * SLICE_ROWS,)),
        "windows": (torch.uint16, (steps,)),
        "starts": (torch.int32, (slices + 1,)),
        "order": (torch.int32, (weight.rows if weight.order.numel() else 0,)),
    }
    for name, (dtype, shape) in expected.items():
        buffer: Tensor = getattr(weight, name)
        if buffer.dtype != dtype or tuple(buffer.shape) != shape or not buffer.is_contiguous():
            return f"{name} of {buffer.dtype} {tuple(buffer.shape)}, expected {dtype} {shape}"
    return None


def _wrong_steps(weight: SellWeight) -> str | None:
    starts, steps = weight.starts, weight.windows.numel()
    if int(starts[0]) != 0 or bool((starts.diff() < 0).any()) or int(starts[-1]) != steps:
        return f"starts that do not rise from 0 to {steps}"
    if steps and int(weight.windows.int().max()) * BEGIN >= weight.cols:
        return f"windows past {weight.cols} columns"
    return None


def _wrong_places(weight: SellWeight) -> str | None:
    columns = weight.columns
    if bool(((columns < KEPT) & (columns != 0)).any()):
        return "holes with columns"
    if bool((columns >= KEPT + WINDOW).any()):
        return f"columns past a window of {WINDOW}"
    order, every = weight.order, torch.arange(weight.rows, device=columns.device)
    if len(order) and not torch.equal(order.long().sort().values, every):
        return f"an order that does not list each of {weight.rows} rows once"
    reasons = (_wrong_slices(weight, *bounds) for bounds in _batches(weight.starts))
    return next((reason for reason in reasons if reason), None)


def _batches(starts: Tensor) -> Iterator[tuple[int, int]]:
    """Slices from the first to before the second, of about BATCH steps: entries take their room."""
    first, end = 0, len(starts) - 1
    while first < end:
        full = torch.searchsorted(starts, starts[first] + BATCH, right=True)
        last = min(max(first + 1, int(full) - 1), end)
        yield first, last
        first = last


def _wrong_slices(weight: SellWeight, first: int, last: int) -> str | None:
    """Of the entries of slices [first, last)."""
    starts, step = weight.starts[first : last + 1], weight.starts[[first, last]].tolist()
    windows = weight.windows[slice(*step)]
    values, columns = (
        each[step[0] * SLICE_ROWS : step[1] * SLICE_ROWS]
        for each in (weight.values, weight.columns)
    )
    _, row, column = entries(values, columns, windows, starts - starts[0], weight.order[:0])
    if bool((row + first * SLICE_ROWS >= weight.rows).any()):
        return f"values in rows past {weight.rows}"
    if bool((column >= weight.cols).any()):
        return f"columns past {weight.cols}"
    order = row.sort(stable=True).indices  # within a row as the steps go
    row, column = row[order], column[order]
    if bool(((row[1:] == row[:-1]) & (column[1:] <= column[:-1])).any()):
        return "columns of a row that do not rise"
    return None
