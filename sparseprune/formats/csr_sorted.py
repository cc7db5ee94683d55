"""The csr layout "sorted": rows by number of nonzeros in a block. Picture: csrc/formats/csr.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.formats.csr_blocks import L1_COLUMNS

MAX_COLS = 1 << 31
BOUND_ROWS = 128
"""Rows of a segment, which must not belong to two groups of a convolution."""
WIDTHS = (L1_COLUMNS, 64, 160)
"""Blocks of about so many columns are worth measuring."""


def pack(weight: Tensor, block: int) -> dict[str, Any]:
    """Buffers of a weight [rows, cols]: columns uint8, counts uint8 [blocks, rows, 2]."""
    rows, cols = weight.shape
    blocks, segments = -(-cols // block), -(-rows // BOUND_ROWS)
    padded = weight.new_zeros(rows, blocks * block)
    padded[:, :cols] = weight
    cells = padded.view(rows, blocks, block).transpose(0, 1)  # [blocks, rows, block]
    count = (cells != 0).sum(-1)
    # Sorted by segment first, then by count; stable, so that equal weights pack equally.
    segment = torch.arange(rows, device=weight.device) // BOUND_ROWS
    order = (segment * (block + 1) + count).sort(dim=-1, stable=True).indices
    cells = cells.gather(1, order[..., None].expand(-1, -1, block))
    count = count.gather(1, order)
    starts = torch.zeros(blocks * segments + 1, dtype=torch.int32, device=weight.device)
    per_segment = count.new_zeros(blocks, segments).index_add_(1, segment, count)
    starts[1:] = per_segment.flatten().cumsum(0)
    kept = cells != 0
    return {
        "block": block,
        "values": cells[kept],
        "columns": kept.nonzero()[:, 2].to(torch.uint8),
        "counts": torch.stack([order % BOUND_ROWS, count], -1).to(torch.uint8),
        "starts": starts,
    }


def entries(columns: Tensor, counts: Tensor, rows: int, block: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    flat = counts.long().view(-1, 2)  # (row within its segment, nonzeros), block by block
    place = torch.arange(len(flat), device=counts.device)
    row = place % max(1, rows) // BOUND_ROWS * BOUND_ROWS + flat[:, 0]
    column = columns.long() + (place // max(1, rows) * block).repeat_interleave(flat[:, 1])
    return row.repeat_interleave(flat[:, 1]), column
