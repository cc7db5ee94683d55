"""The csr layout "groups": four rows share what they load. Picture: csrc/formats/csr.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.formats.csr_blocks import L1_COLUMNS

MAX_COLS = 1 << 31
BOUND_ROWS = 4
"""Rows of a group, which must not belong to two groups of a convolution."""
PATTERNS = 15
WIDTHS = (L1_COLUMNS, 96, 160, 208)
"""As in csr_sorted: wide ones share more and end fewer of the 15 loops."""


def pack(weight: Tensor, block: int) -> dict[str, Any]:
    """Buffers of a weight [rows, cols]: columns uint8, counts uint8 [blocks, groups, 15]."""
    rows, cols = weight.shape
    blocks, groups = -(-cols // block), -(-rows // BOUND_ROWS)
    padded = weight.new_zeros(groups * BOUND_ROWS, blocks * block)
    padded[:rows, :cols] = weight
    # [blocks, groups, block, 4]: the four weights that share a column lie together
    cells = padded.view(groups, BOUND_ROWS, blocks, block).permute(2, 0, 3, 1)
    bits = (1 << torch.arange(BOUND_ROWS, device=weight.device)).to(torch.uint8)
    pattern = ((cells != 0) * bits).sum(-1, dtype=torch.uint8)
    ordered, order = pattern.sort(dim=-1, stable=True)
    sorted_cells = cells.gather(2, order[..., None].expand(-1, -1, -1, BOUND_ROWS))
    counts = torch.stack([(pattern == p).sum(-1) for p in range(1, PATTERNS + 1)], -1)
    starts = torch.zeros(blocks * groups + 1, 2, dtype=torch.int32, device=weight.device)
    starts[1:, 0] = (cells != 0).sum((-1, -2)).flatten().cumsum(0)
    starts[1:, 1] = counts.sum(-1).flatten().cumsum(0)
    return {
        "block": block,
        "values": sorted_cells[sorted_cells != 0],
        "columns": order[ordered > 0].to(torch.uint8),
        "counts": counts.to(torch.uint8),
        "starts": starts,
    }


def entries(columns: Tensor, counts: Tensor, rows: int, block: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    groups = max(1, -(-rows // BOUND_ROWS))
    each = counts.long().view(-1)
    cell = torch.arange(each.numel(), device=counts.device).repeat_interleave(each)
    pattern, group, of_block = cell % PATTERNS + 1, cell // PATTERNS % groups, cell // PATTERNS
    column = columns.long() + of_block // groups * block
    bits = torch.arange(BOUND_ROWS, device=counts.device)
    kept = (pattern[:, None] >> bits & 1).bool()
    row = (group[:, None] * BOUND_ROWS + bits)[kept]
    return row, column[:, None].expand(-1, BOUND_ROWS)[kept]
