"""The csr layout "sorted": pairs of rows that share columns. Picture: csrc/formats/csr.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.formats import csr_match
from sparseprune.formats.csr_blocks import L1_COLUMNS

MAX_COLS = 1 << 31
BOUND_ROWS = 128
"""Rows of a segment, which must not belong to two groups of a convolution."""
PAIR = 5
"""Counts of a pair: two rows, columns that both have, more of the first, more of the second."""
WIDTHS = (L1_COLUMNS, 64, 160, 240)
"""Blocks of about so many columns are worth measuring."""
UNEVEN = 2
"""Shared columns that one column more in one row than in the other is worth: loops end apart."""
TOGETHER = 4
"""Columns that a row has for itself are multiplied so many at once; what is left is a loop more."""
LONG = 12
"""Rows of so many columns are worth sharing fewer of them for that."""


def pack(weight: Tensor, block: int) -> dict[str, Any]:
    """Buffers of a weight [rows, cols]: columns uint8, counts uint8 [blocks, pairs, 5]."""
    rows, cols = weight.shape
    blocks, segments = -(-cols // block), -(-rows // BOUND_ROWS)
    padded = weight.new_zeros(rows, blocks * block)
    padded[:, :cols] = weight
    cells = padded.view(rows, blocks, block).transpose(0, 1)  # [blocks, rows, block]
    one, two, shared = _pairs(cells != 0)  # [blocks, pairs]
    first, second = (cells.gather(1, r[..., None].expand(-1, -1, block)) for r in (one, two))
    if rows % 2:
        first[:, -1] = 0  # the last row is alone
    both = (first != 0) & (second != 0)
    both &= both.cumsum(-1) <= shared[..., None]
    parts = torch.stack([both, (first != 0) & ~both, (second != 0) & ~both], 2)
    count = parts.sum(-1)  # [blocks, pairs, 3]
    kept = torch.cat([both.repeat_interleave(2, -1), parts[:, :, 1], parts[:, :, 2]], -1)
    values = torch.cat([torch.stack([first, second], -1).flatten(-2), first, second], -1)
    segment = torch.arange(count.shape[1], device=weight.device) // (BOUND_ROWS // 2)
    stored = torch.stack([count.sum(-1) + count[..., 0], count.sum(-1)], -1)
    per_segment = stored.new_zeros(blocks, segments, 2).index_add_(1, segment, stored)
    starts = torch.zeros(blocks * segments + 1, 2, dtype=torch.int32, device=weight.device)
    starts[1:] = per_segment.view(-1, 2).cumsum(0)
    return {
        "block": block,
        "values": values[kept],
        "columns": parts.nonzero()[:, 3].to(torch.uint8),
        "counts": torch.cat([torch.stack([one, two], -1) % BOUND_ROWS, count], -1).to(torch.uint8),
        "starts": starts,
    }


def _pairs(kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of kept [blocks, rows, block], segment by segment: rows, and how many columns to share.

    Each is [blocks, pairs].
    """
    blocks, rows, block = kept.shape
    whole = rows // BOUND_ROWS * BOUND_ROWS
    parts = [torch.zeros(3, blocks, 0, dtype=torch.int64, device=kept.device)]
    for begin, end, n in ((0, whole, BOUND_ROWS), (whole, rows, rows - whole)):
        if begin < end:
            matched = _match(kept[:, begin:end].reshape(-1, n, block))
            matched = matched.reshape(3, blocks, (end - begin) // n, -(-n // 2))
            matched[:2] += torch.arange(begin, end, n, device=kept.device)[:, None]
            parts.append(matched.flatten(2))
    one, two, shared = torch.cat(parts, 2)
    return one, two, shared


def _match(kept: Tensor) -> Tensor:
    """Pairs [3, segments, pairs] of the rows of each segment, of kept [segments, rows, block].

    The first of a pair has fewer columns for itself, a last row is both of its; the third number is
    how many columns they share. Pairs of one shape follow each other: loops end as the time before.
    """
    rows = kept.shape[1]
    pairs, both = csr_match.pairs(kept, _score)
    pairs = pairs.flip(-1)  # the one found first has as many or more
    count = kept.sum(-1).gather(1, pairs.flatten(1)).view_as(pairs)
    shared = _whole(both, count[..., 0])
    alone = count - shared[..., None]
    key = (shared << 16) + (alone[..., 0] << 8) + alone[..., 1]
    order = key.sort(dim=-1, stable=True).indices
    found = torch.stack([*pairs.unbind(-1), shared]).gather(2, order.expand(3, -1, -1))
    if rows % 2:
        last = rows * (rows - 1) // 2 - pairs.sum((1, 2))  # the one that no pair has
        found = torch.cat([found, torch.stack([last, last, 0 * last])[..., None]], 2)
    return found


def _whole(both: Tensor, count: Tensor) -> Tensor:
    """At most `both` shared columns, so that a row of `count` keeps a multiple of `TOGETHER`."""
    fewer = both - (both - count) % TOGETHER
    return torch.where((fewer >= 0) & (count >= LONG), fewer, both)


def _score(shared: Tensor, one: Tensor, two: Tensor) -> Tensor:
    return shared - UNEVEN * (one - two).abs()


def entries(columns: Tensor, counts: Tensor, rows: int, block: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    pairs = max(1, -(-rows // 2))
    one, two, shared, less, more = counts.long().view(-1, PAIR).unbind(-1)
    lengths = torch.stack([2 * shared, less, more], -1).view(-1)  # of values
    part = torch.arange(len(lengths), device=counts.device).repeat_interleave(lengths)
    place = torch.arange(len(part), device=counts.device) - (lengths.cumsum(0) - lengths)[part]
    pair, part = part // 3, part % 3
    is_shared = part == 0
    second = torch.where(is_shared, place % 2, part - 1)
    before = torch.stack([torch.zeros_like(shared), shared, shared + less], -1).view(-1)
    width = shared + less + more
    start = width.cumsum(0) - width
    column = start[pair] + before[pair * 3 + part] + torch.where(is_shared, place // 2, place)
    row = torch.where(second == 1, two[pair], one[pair])
    segment, of_block = pair % pairs // (BOUND_ROWS // 2), pair // pairs
    return row + segment * BOUND_ROWS, columns.long()[column] + of_block * block
