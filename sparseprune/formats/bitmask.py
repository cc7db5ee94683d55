"""One bit per position, for few rows of input. Layout: csrc/formats/bitmask.h."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, Format
from sparseprune.formats.linear_weight import LinearWeight

UNIT_ROWS = 64
"""Rows whose values lie together, column by column."""
MASK_BYTES = UNIT_ROWS // 8
MAX_TOKENS = {"cpu": 8, "cuda": 16}
"""Device -> rows of input above which other layouts, which share weights among more, are faster."""
MAX_TOKENS_HALF = {"cuda": 128}
"""The same in half, which tensor cores multiply; the CPU would widen it for every call."""


class Bitmask(Format):
    """A bit for every position and the nonzeros in its order, float32 or half; Linear layers.

    In float32 4 bytes per nonzero and a bit per position are fewer than csr's 6 bytes per nonzero
    below 94 % sparsity; weights are expanded once for four rows of input, on CUDA for eight, there
    in half for 64. On the CPU half is widened for every call.
    """

    stem: ClassVar[str] = "bitmask"
    serves: ClassVar[tuple[str, ...]] = ("Linear",)

    @property
    def name(self) -> str:
        return self.stem

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dim() != 2:
            return f"bitmask holds matrices, the weight has {weight.dim()} dimensions"
        if weight.dtype not in DTYPES:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"bitmask holds float32, float16 and bfloat16, the weight is {dtype}"
        if weight.numel() >= 2**31:
            return "bitmask counts nonzeros in 32 bits, the weight is larger"
        if groups > 1:
            return "bitmask serves Linear layers, not the groups of a convolution"
        return None

    def worth(self, weight: Tensor, tokens: int) -> bool:
        most = MAX_TOKENS if weight.dtype == torch.float32 else MAX_TOKENS_HALF
        return tokens <= most.get(weight.device.type, 0)

    def pack(self, weight: Tensor, groups: int = 1) -> BitmaskWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Bitmask.pack", "weight", "one that the format holds", reason,
                      "keep it dense")  # fmt: skip
        rows, cols = weight.shape
        units = -(-rows // UNIT_ROWS)
        padded = F.pad(weight.detach(), (0, 0, 0, units * UNIT_ROWS - rows))
        padded = padded.view(units, UNIT_ROWS, cols).transpose(1, 2)  # as the values will lie
        kept = padded != 0
        bits = kept.reshape(units, cols, MASK_BYTES, 8).to(torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8, device=weight.device)
        starts = torch.zeros(units + 1, dtype=torch.int32, device=weight.device)
        starts[1:] = kept.sum((1, 2)).cumsum(0)
        masks = (bits << shifts).sum(-1, dtype=torch.uint8)
        return BitmaskWeight(rows, cols, padded[kept], masks, starts).use()


class BitmaskWeight(LinearWeight):
    """A packed weight [rows, cols].

    Buffers: values [nonzeros] in float32 or half, masks uint8 [units, cols, 8], starts int32
    [units + 1].
    """

    stem = "bitmask"
    parts = ("values", "masks", "starts")

    def __init__(self, rows: int, cols: int, values: Tensor, masks: Tensor, starts: Tensor) -> None:
        super().__init__(rows, cols)
        self.register_buffer("values", values)
        self.register_buffer("masks", masks)
        self.register_buffer("starts", starts)

    values: Tensor
    masks: Tensor
    starts: Tensor

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    def unpack(self) -> Tensor:
        return unpack(self.values, self.masks, self.starts, self.rows, self.cols)


def kept_positions(masks: Tensor) -> Tensor:
    """The bits as bool [units, cols, 64], in the order of the values."""
    shifts = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (masks[..., None] >> shifts & 1).bool().flatten(-2)


def entries(values: Tensor, masks: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nonzeros, and row and column (int64) of each."""
    unit, column, row = kept_positions(masks).nonzero().unbind(-1)
    return values, unit * UNIT_ROWS + row, column


def unpack(values: Tensor, masks: Tensor, starts: Tensor, rows: int, cols: int) -> Tensor:
    """The dense weight [rows, cols]."""
    kept = kept_positions(masks)
    dense = values.new_zeros(kept.shape)
    dense[kept] = values
    return dense.transpose(1, 2).reshape(len(kept) * UNIT_ROWS, cols)[:rows].contiguous()
