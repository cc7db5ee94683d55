"""The csr layout "rows": plain compressed sparse rows. Picture: csrc/formats/csr.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_COLS = 1 << 16
BOUND_ROWS = 1
"""Rows that must not belong to two groups of a convolution."""
WIDTHS: tuple[int, ...] = ()
"""It has no blocks."""


def pack(weight: Tensor) -> dict[str, Any]:
    """Buffers of a weight [rows, cols]: columns uint16, starts int32 [rows + 1]."""
    kept = weight != 0
    starts = torch.zeros(len(weight) + 1, dtype=torch.int32, device=weight.device)
    starts[1:] = kept.sum(1).cumsum(0)
    return {
        "block": 0,
        "values": weight[kept],
        "columns": kept.nonzero()[:, 1].to(torch.uint16),
        "counts": torch.empty(0, dtype=torch.uint8, device=weight.device),
        "starts": starts,
    }


def entries(columns: Tensor, starts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    row = torch.repeat_interleave(torch.arange(rows, device=starts.device), starts.diff())
    return row, columns.long()
