"""Whether the buffers of a CsrWeight can be trusted: kernels read and write where they point."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats import csr_groups, csr_sorted
from sparseprune.formats.base import DTYPES, PackedWeight
from sparseprune.formats.csr import LAYOUTS, CsrWeight, bound_rows
from sparseprune.formats.csr_blocks import MAX_BLOCK

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
        wrong = {"rows": _wrong_rows, "groups": _wrong_groups, "sorted": _wrong_sorted}
        reason = wrong[weight.layout](weight)
    if reason is not None:
        raise bad("csr_check", "packed weight", "as made by Csr.pack", reason, "pack it again")


def check_groups(weight: PackedWeight, groups: int) -> None:
    """What a convolution of that many channel groups needs of its packed weight.

    Raises:
        ValueError: rows that a kernel handles together belong to two groups.
    """
    bound = bound_rows(weight.counts) if isinstance(weight, CsrWeight) else 1
    if weight.rows % groups or (groups > 1 and weight.rows // groups % bound):
        expected = f"divisible by {groups} groups, each by {bound}"
        raise bad("csr_check", "rows", expected, weight.rows, "pack it again")


def _wrong_sizes(weight: CsrWeight) -> str | None:
    sizes = {"rows": weight.rows, "cols": weight.cols, "block": weight.block}
    for name, size in sizes.items():
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    if weight.layout not in ("rows", "groups", "sorted"):
        return f"layout {weight.layout!r}"
    least, most = (0, 0) if weight.layout == "rows" else (1, MAX_BLOCK)
    if not least <= weight.block <= most or weight.cols > LAYOUTS[weight.layout].MAX_COLS:
        return f"layout {weight.layout!r} with block {weight.block} and {weight.cols} columns"
    return None


def _wrong_types(weight: CsrWeight) -> str | None:
    """dtype and shape of each buffer, as far as the sizes alone determine them."""
    nonzeros, rows = weight.values.numel(), weight.rows
    blocks = -(-weight.cols // weight.block) if weight.block else 0
    cells = blocks * _bundles(weight)
    numbered = weight.counts.shape[-1:] == (csr_groups.NUMBERED,)
    index, columns, counts, starts = {
        "rows": (torch.uint16, (nonzeros,), (0,), (rows + 1,)),
        "groups": (
            torch.uint8,
            (weight.columns.numel(),),
            (blocks, _bundles(weight), csr_groups.NUMBERED if numbered else csr_groups.PATTERNS),
            (cells + 1, 2),
        ),
        "sorted": (
            torch.uint8,
            (weight.columns.numel(),),
            (blocks, -(-rows // 2), csr_sorted.PAIR),
            (cells + 1, 2),
        ),
    }[weight.layout]
    halves = weight.layout == "rows" and weight.values.dtype in DTYPES
    dtype = weight.values.dtype if halves else DTYPES[0]
    expected = {
        "values": (dtype, (nonzeros,)),
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
    counts = weight.counts[..., -csr_groups.PATTERNS :].long()
    pattern = torch.arange(1, csr_groups.PATTERNS + 1, device=counts.device)
    rows_of = torch.stack([pattern >> bit & 1 for bit in range(csr_groups.BOUND_ROWS)]).sum(0)
    per_cell = torch.stack([(counts * rows_of).sum(-1), counts.sum(-1)], -1).view(-1, 2)
    if (reason := _wrong_starts(weight.starts, per_cell)) is not None:
        return reason
    if weight.starts[-1].tolist() != [weight.values.numel(), weight.columns.numel()]:
        return "counts that do not add up to the number of values and columns"
    over = weight.rows % csr_groups.BOUND_ROWS
    if over and counts.numel() and bool(counts[:, -1, pattern >= 1 << over].any()):
        return f"values in rows past {weight.rows}"
    if weight.counts.shape[-1] == csr_groups.NUMBERED:
        if over_segment := weight.rows % csr_groups.SEGMENT:
            return f"numbered groups with {over_segment} rows past their last segment"
        if bool((weight.counts[..., : csr_groups.BOUND_ROWS] >= csr_groups.SEGMENT).any()):
            return f"a row outside its segment of {csr_groups.SEGMENT}"
        rows = csr_groups.rows_of(weight.counts).flatten(1)
        if bool((rows.sort(-1).values != torch.arange(weight.rows, device=rows.device)).any()):
            return "rows that do not each occur once in their segment"
    return _wrong_columns(weight, weight.starts[:, 1])


def _wrong_sorted(weight: CsrWeight) -> str | None:
    one, two, shared, less, more = weight.counts.long().unbind(-1)  # [blocks, pairs]
    columns = shared + less + more
    stored = torch.stack([columns + shared, columns], -1)
    segment = torch.arange(columns.shape[1], device=one.device) // (csr_sorted.BOUND_ROWS // 2)
    per_cell = stored.new_zeros(len(stored), _bundles(weight), 2).index_add_(1, segment, stored)
    if (reason := _wrong_starts(weight.starts, per_cell.view(-1, 2))) is not None:
        return reason
    if weight.starts[-1].tolist() != [weight.values.numel(), weight.columns.numel()]:
        return "counts that do not add up to the number of values and columns"
    if bool((less > more).any()):
        return "a first row of a pair with more columns than the second"
    if weight.rows % 2 and bool((shared + less)[:, -1].any()):
        return "a last row that is not alone"
    rows = torch.cat([one[:, : weight.rows // 2], two], 1)
    segments = torch.cat([segment[: weight.rows // 2], segment])
    place = torch.arange(weight.rows, device=rows.device)
    found = (rows + segments * csr_sorted.BOUND_ROWS).sort(-1).values
    if bool((rows >= csr_sorted.BOUND_ROWS).any()) or bool((found != place).any()):
        return "rows that do not each occur once in their segment"
    return _wrong_columns(weight, weight.starts[:, 1])


def _bundles(weight: CsrWeight) -> int:
    """Groups or segments of rows."""
    bound: int = LAYOUTS[weight.layout].BOUND_ROWS
    return -(-weight.rows // bound)


def _wrong_starts(starts: Tensor, per_cell: Tensor) -> str | None:
    expected = torch.cat([torch.zeros_like(per_cell[:1]), per_cell.cumsum(0)])
    if len(per_cell) == 0:
        expected = torch.zeros_like(starts)
    return None if torch.equal(starts.long(), expected.long()) else "starts that contradict counts"


def _wrong_columns(weight: CsrWeight, starts: Tensor) -> str | None:
    """Columns count from the start of their block; the last block may be narrower."""
    columns = weight.columns
    if not columns.numel():
        return None
    last_width = weight.cols - (weight.cols - 1) // weight.block * weight.block
    last = columns[int(starts[-1 - _bundles(weight)]) :]
    if int(columns.max()) >= weight.block or (len(last) and int(last.max()) >= last_width):
        return f"a column outside its block of {weight.block} (the last has {last_width})"
    return None
