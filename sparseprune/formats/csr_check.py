"""Whether the buffers of a CsrWeight can be trusted: kernels read and write where they point."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import PackedWeight
from sparseprune.formats.csr import MAX_BLOCK, MAX_COLUMN, PATTERNS, ROWS_PER_GROUP, CsrWeight

MAX_WEIGHTS = 2**31


def check(weight: PackedWeight) -> None:
    """Everything that a kernel relies on, read from the buffers themselves.

    Raises:
        ValueError: a buffer that would make a kernel leave its memory, or is not what pack makes.
    """
    if not isinstance(weight, CsrWeight):
        raise bad("csr_check", "weight", "a CsrWeight", type(weight).__name__, "pack it again")
    reason = _wrong_sizes(weight) or _wrong_types(weight)
    if reason is None:
        reason = _wrong_rows(weight) if weight.layout == "rows" else _wrong_groups(weight)
    if reason is not None:
        raise bad("csr_check", "packed weight", "as made by Csr.pack", reason, "pack it again")


def _wrong_sizes(weight: CsrWeight) -> str | None:
    sizes = {"rows": weight.rows, "cols": weight.cols, "block": weight.block}
    for name, size in sizes.items():
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    if weight.layout not in ("rows", "groups"):
        return f"layout {weight.layout!r}"
    if weight.layout == "rows" and (weight.block or weight.cols > MAX_COLUMN):
        return f"layout 'rows' with block {weight.block} and {weight.cols} columns"
    if weight.layout == "groups" and not 1 <= weight.block <= MAX_BLOCK:
        return f"layout 'groups' with block {weight.block}"
    return None


def _wrong_types(weight: CsrWeight) -> str | None:
    """dtype and shape of each buffer, as far as the sizes alone determine them."""
    nonzeros = weight.values.numel()
    if weight.layout == "rows":
        index, columns = torch.uint16, (nonzeros,)
        counts, starts = (0,), (weight.rows + 1,)
    else:
        groups, blocks = -(-weight.rows // ROWS_PER_GROUP), -(-weight.cols // weight.block)
        index, columns = torch.uint8, (weight.columns.numel(),)
        counts, starts = (blocks, groups, PATTERNS), (blocks * groups + 1, 2)  # type: ignore[assignment]
    expected = {
        "values": (torch.float32, (nonzeros,)),
        "columns": (index, columns),
        "counts": (torch.uint8, counts),
        "starts": (torch.int32, starts),
    }
    for name, (dtype, shape) in expected.items():
        buffer: Tensor = getattr(weight, name)
        if buffer.dtype != dtype or tuple(buffer.shape) != shape or not buffer.is_contiguous():
            return f"{name} of {buffer.dtype} {tuple(buffer.shape)}, expected {dtype} {shape}"
    return None


def _wrong_rows(weight: CsrWeight) -> str | None:
    starts, columns = weight.starts.long(), weight.columns.int()
    if int(starts[0]) != 0 or int(starts[-1]) != len(columns) or bool((starts.diff() < 0).any()):
        return "starts that do not lead from 0 to the number of values"
    if not len(columns):
        return None
    if int(columns.max()) >= weight.cols:
        return f"column {int(columns.max())} of {weight.cols}"
    first = torch.zeros(len(columns) + 1, dtype=torch.bool, device=columns.device)
    first[starts] = True  # where a row begins, columns may fall
    if bool(((columns.diff() <= 0) & ~first[1:-1]).any()):
        return "columns that do not ascend within their row"
    return None


def _wrong_groups(weight: CsrWeight) -> str | None:
    counts, starts = weight.counts.long(), weight.starts.long()
    pattern = torch.arange(1, PATTERNS + 1, device=counts.device)
    rows_of = sum(pattern >> bit & 1 for bit in range(ROWS_PER_GROUP))
    per_cell = torch.stack([(counts * rows_of).sum(-1), counts.sum(-1)], -1).view(-1, 2)
    expected = torch.cat([per_cell.new_zeros(1, 2), per_cell.cumsum(0)])
    if not torch.equal(starts, expected):
        return "starts that do not agree with counts"
    if starts[-1].tolist() != [weight.values.numel(), weight.columns.numel()]:
        return "counts that do not add up to the number of values and columns"
    over = weight.rows % ROWS_PER_GROUP
    if over and counts.numel() and bool(counts[:, -1, pattern >= 1 << over].any()):
        return f"values in rows past {weight.rows}"
    return _wrong_columns(weight, starts)


def _wrong_columns(weight: CsrWeight, starts: Tensor) -> str | None:
    """Columns count from the start of their block; the last block may be narrower."""
    columns, groups = weight.columns, -(-weight.rows // ROWS_PER_GROUP)
    if not columns.numel():
        return None
    last_width = weight.cols - (weight.cols - 1) // weight.block * weight.block
    last = columns[int(starts[-1 - groups, 1]) :]
    if int(columns.max()) >= weight.block or (len(last) and int(last.max()) >= last_width):
        return f"a column outside its block of {weight.block} (the last has {last_width})"
    return None
