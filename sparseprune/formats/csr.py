"""Unstructured sparsity: an index for every nonzero. Layouts: csrc/formats/csr.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import Format, PackedWeight, Pair

ROWS_PER_GROUP = 4
PATTERNS = 15
MAX_BLOCK = 255
MAX_COLUMN = 1 << 16
L1_COLUMNS = 192
"""Columns of a block: 192 panel rows of 64 floats are one 48 KB L1 cache."""


@dataclass(frozen=True)
class Csr(Format):
    """Compressed sparse rows, float32, in the layout "rows" or "groups".

    "rows" keeps each row's nonzeros together: few tokens, very high sparsity. "groups" lets four
    rows share the activations that they load: many tokens, from about 40 % sparsity on.

    Args:
        layout: ``"rows"`` or ``"groups"``.
    """

    layout: str = "groups"
    stem: ClassVar[str] = "csr"

    def __post_init__(self) -> None:
        if self.layout not in ("rows", "groups"):
            raise bad("Csr", "layout", "'rows' or 'groups'", repr(self.layout), "pick one")

    @property
    def name(self) -> str:
        return f"csr/{self.layout}"

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dtype != torch.float32:
            return f"csr holds float32, the weight is {str(weight.dtype).removeprefix('torch.')}"
        if weight.numel() >= 2**31:
            return "csr counts nonzeros in 32 bits, the weight is larger"
        rows, cols = weight.shape
        if self.layout == "rows" and cols > MAX_COLUMN:
            return f"csr/rows indexes {MAX_COLUMN} inputs, the weight has {cols}"
        if self.layout == "groups" and rows // groups % ROWS_PER_GROUP and groups > 1:
            return f"csr/groups needs outputs per group divisible by 4, got {rows // groups}"
        return None

    def pack(self, weight: Tensor, groups: int = 1) -> CsrWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Csr.pack", "weight", "one that the format holds", reason, "keep it dense")
        pack = _pack_rows if self.layout == "rows" else _pack_groups
        return CsrWeight(self.layout, *weight.shape, **pack(weight.detach())).use()


class CsrWeight(PackedWeight):
    """A packed weight [rows, cols].

    Buffers: values float32, columns uint16 or uint8, counts uint8, starts int32.
    """

    stem = "csr"

    def __init__(
        self,
        layout: str,
        rows: int,
        cols: int,
        block: int,
        values: Tensor,
        columns: Tensor,
        counts: Tensor,
        starts: Tensor,
    ) -> None:
        super().__init__(rows, cols)
        self.layout, self.block = layout, block
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("counts", counts)
        self.register_buffer("starts", starts)

    values: Tensor
    columns: Tensor
    counts: Tensor
    starts: Tensor

    @property
    def name(self) -> str:
        return f"csr/{self.layout}"

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    def spec(self) -> dict[str, Any]:
        return {"layout": self.layout, "rows": self.rows, "cols": self.cols, "block": self.block}

    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The buffers in the order that the ops take them."""
        return self.values, self.columns, self.counts, self.starts

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._ops.csr_linear(x, *self.packed(), bias, self.rows, self.cols, self.block)

    def conv2d(
        self,
        x: Tensor,
        bias: Tensor | None,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Tensor:
        return self._ops.csr_conv2d(
            x,
            *self.packed(),
            bias,
            self.rows,
            self.cols,
            self.block,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
        )

    def unpack(self) -> Tensor:
        return unpack(*self.packed(), self.rows, self.cols, self.block)


def entries(
    columns: Tensor, counts: Tensor, starts: Tensor, rows: int, cols: int, block: int
) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    if block == 0:
        per_row = starts.diff()
        row = torch.repeat_interleave(torch.arange(rows, device=starts.device), per_row)
        return row, columns.long()
    groups = -(-rows // ROWS_PER_GROUP)
    counts = counts.long().view(-1)
    cell = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
    pattern = cell % PATTERNS + 1
    group = cell // PATTERNS % max(groups, 1)
    column = columns.long() + cell // PATTERNS // max(groups, 1) * block
    bits = torch.arange(ROWS_PER_GROUP, device=counts.device)
    kept = (pattern[:, None] >> bits & 1).bool()
    row = (group[:, None] * ROWS_PER_GROUP + bits)[kept]
    return row, column[:, None].expand(-1, ROWS_PER_GROUP)[kept]


def unpack(
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    cols: int,
    block: int,
) -> Tensor:
    """The dense weight [rows, cols]."""
    row, column = entries(columns, counts, starts, rows, cols, block)
    dense = values.new_zeros(rows, cols)
    dense[row, column] = values
    return dense


def _pack_rows(weight: Tensor) -> dict[str, Any]:
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


def _pack_groups(weight: Tensor) -> dict[str, Any]:
    rows, cols = weight.shape
    blocks = max(1, round(cols / L1_COLUMNS), -(-cols // MAX_BLOCK))
    block = max(1, -(-cols // blocks))
    blocks, groups = -(-cols // block), -(-rows // ROWS_PER_GROUP)
    padded = weight.new_zeros(groups * ROWS_PER_GROUP, blocks * block)
    padded[:rows, :cols] = weight
    # [blocks, groups, block, 4]: the four weights that share a column lie together
    cells = padded.view(groups, ROWS_PER_GROUP, blocks, block).permute(2, 0, 3, 1)
    bits = (1 << torch.arange(ROWS_PER_GROUP, device=weight.device)).to(torch.uint8)
    pattern = ((cells != 0) * bits).sum(-1, dtype=torch.uint8)
    ordered, order = pattern.sort(dim=-1, stable=True)
    columns = order[ordered > 0].to(torch.uint8)
    sorted_cells = cells.gather(2, order[..., None].expand(-1, -1, -1, ROWS_PER_GROUP))
    counts = torch.stack([(pattern == p).sum(-1) for p in range(1, PATTERNS + 1)], -1)
    starts = torch.zeros(blocks * groups + 1, 2, dtype=torch.int32, device=weight.device)
    starts[1:, 0] = (cells != 0).sum((-1, -2)).flatten().cumsum(0)
    starts[1:, 1] = counts.sum(-1).flatten().cumsum(0)
    return {
        "block": block,
        "values": sorted_cells[sorted_cells != 0],
        "columns": columns,
        "counts": counts.to(torch.uint8),
        "starts": starts,
    }
