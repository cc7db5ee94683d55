"""The csr layout "groups": four rows share what they load. Picture: csrc/formats/csr.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.formats import csr_match
from sparseprune.formats.csr_blocks import L1_COLUMNS

MAX_COLS = 1 << 31
BOUND_ROWS = 4
"""Rows of a group, which must not belong to two groups of a convolution."""
PATTERNS = 15
SEGMENT = 64
"""Rows whose groups are numbered, where rows are whole segments: likewise bound together."""
NUMBERED = BOUND_ROWS + PATTERNS
"""Counts of a group behind the numbers of its rows."""
WIDTHS = (L1_COLUMNS, 96, 160, 208)
"""As in csr_sorted: wide ones share more and end fewer of the 15 loops."""


def pack(weight: Tensor, block: int, groups: int = 1) -> dict[str, Any]:
    """Buffers of a weight [rows, cols]: columns uint8, counts uint8 [blocks, groups, 15 or 19].

    Args:
        weight: any matrix.
        block: columns of a block.
        groups: of a convolution; rows of a segment must not belong to two.
    """
    rows, cols = weight.shape
    blocks, quads = -(-cols // block), -(-rows // BOUND_ROWS)
    padded = weight.new_zeros(quads * BOUND_ROWS, blocks * block)
    padded[:rows, :cols] = weight
    cells = padded.view(quads * BOUND_ROWS, blocks, block).transpose(0, 1)  # [blocks, rows, block]
    numbers = weight.new_zeros(blocks, quads, 0, dtype=torch.uint8)
    if rows // groups % SEGMENT == 0:
        order = _order(cells != 0)
        cells = cells.gather(1, order[..., None].expand_as(cells))
        numbers = (order % SEGMENT).view(blocks, quads, BOUND_ROWS).to(torch.uint8)
    # [blocks, groups, block, 4]: the four weights that share a column lie together
    cells = cells.reshape(blocks, quads, BOUND_ROWS, block).transpose(2, 3)
    bits = (1 << torch.arange(BOUND_ROWS, device=weight.device)).to(torch.uint8)
    pattern = ((cells != 0) * bits).sum(-1, dtype=torch.uint8)
    ordered, order = pattern.sort(dim=-1, stable=True)
    sorted_cells = cells.gather(2, order[..., None].expand(-1, -1, -1, BOUND_ROWS))
    counts = torch.stack([(pattern == p).sum(-1) for p in range(1, PATTERNS + 1)], -1)
    starts = torch.zeros(blocks * quads + 1, 2, dtype=torch.int32, device=weight.device)
    starts[1:, 0] = (cells != 0).sum((-1, -2)).flatten().cumsum(0)
    starts[1:, 1] = counts.sum(-1).flatten().cumsum(0)
    return {
        "block": block,
        "values": sorted_cells[sorted_cells != 0],
        "columns": order[ordered > 0].to(torch.uint8),
        "counts": torch.cat([numbers, counts.to(torch.uint8)], -1),
        "starts": starts,
    }


def _order(kept: Tensor) -> Tensor:
    """Rows [blocks, rows] group by group, of kept [blocks, rows, block].

    Pairs of rows that share more columns than their numbers let expect, and such pairs of pairs.
    """
    blocks, rows, block = kept.shape
    kept = kept.reshape(-1, SEGMENT, block)

    def score(shared: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return shared - one * two / block

    pairs, _ = csr_match.pairs(kept, score)
    one, two = (kept.gather(1, r[..., None].expand(-1, -1, block)) for r in pairs.unbind(-1))
    of_pairs = csr_match.pairs(one | two, score)[0].flatten(1)
    order = pairs.gather(1, of_pairs[..., None].expand_as(pairs))
    order = order.view(blocks, rows // SEGMENT, SEGMENT)
    return (order + torch.arange(0, rows, SEGMENT, device=kept.device)[:, None]).flatten(1)


def rows_of(counts: Tensor) -> Tensor:
    """Rows [blocks, groups, 4] (int64) of every group; the last may have fewer."""
    blocks, groups, cell = counts.shape
    place = torch.arange(groups * BOUND_ROWS, device=counts.device).view(groups, BOUND_ROWS)
    if cell == PATTERNS:
        return place.expand(blocks, -1, -1)
    return place // SEGMENT * SEGMENT + counts[..., :BOUND_ROWS].long()


def entries(columns: Tensor, counts: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    groups = max(1, counts.shape[1])
    each = counts[..., -PATTERNS:].reshape(-1).long()
    cell = torch.arange(each.numel(), device=counts.device).repeat_interleave(each)
    pattern, group = cell % PATTERNS + 1, cell // PATTERNS
    column = columns.long() + group // groups * block
    bits = torch.arange(BOUND_ROWS, device=counts.device)
    kept = (pattern[:, None] >> bits & 1).bool()
    row = rows_of(counts).reshape(-1, BOUND_ROWS)[group]
    return row[kept], column[:, None].expand(-1, BOUND_ROWS)[kept]
