"""bitmask layers in Triton: float32 (never TF32), float16, bfloat16, for few rows of input.

A program expands some rows of one unit of 64, column by column, and multiplies them by a tile of
tokens. Where its values lie follows from the bits before them: a running count of whole columns,
and within a column of the rows before. Memory and its traffic are saved, arithmetic is not, and a
pruned weight counts as the zero of a dense layer: 0 * inf = NaN, unlike in the compiled kernels.
The tile is measured at the first call for a shape, so call once before a CUDA graph is captured.
Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseprune.formats.bitmask import UNIT_ROWS
from sparseprune.ops.bitmask import BITMASK
from sparseprune.triton.finish import finish
from sparseprune.triton.launch import launch, tuned

CONFIGS = [
    triton.Config({"TOKENS": tokens, "ROWS": rows, "COLUMNS": columns}, num_warps=warps)
    for tokens, rows, columns, warps in (
        (16, 16, 64, 2), (16, 16, 128, 4), (16, 32, 64, 4), (16, 64, 64, 4), (32, 64, 32, 4),
        (64, 64, 32, 4), (64, 64, 64, 8),
    )
]  # fmt: skip
_tuned = tuned(CONFIGS, interpreted=0)


@triton.jit  # type: ignore[untyped-decorator]
def _bits(mask):  # type: ignore[no-untyped-def]
    """How many bits of each int64 are set, as int32."""
    pairs = mask - ((mask >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    halves = bytes_ + (bytes_ >> 32)
    halves += halves >> 16
    return ((halves + (halves >> 8)) & 0x7F).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(values, mask, begin, first, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The dense weights [columns, ROWS] of rows `first` to `first` + ROWS of a unit; `mask`: the
    bits of each column; `begin`: where the values of the first column lie."""
    counts = _bits(mask)
    before = mask & ((tl.full((), 1, tl.int64) << first) - 1)
    start = begin + tl.cumsum(counts, 0) - counts + _bits(before)
    kept = ((mask[:, None] >> (first + tl.arange(0, ROWS))[None, :].to(tl.int64)) & 1).to(tl.int32)
    at = start[:, None] + tl.cumsum(kept, 1) - kept
    return tl.load(values + at, mask=kept != 0, other=0.0), tl.sum(counts, 0)


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, values, masks, starts, bias, y, tokens, tuned_tokens, rows, cols, low, high,
    HAS_BIAS: tl.constexpr, UNIT: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(rows, ROWS)
    first_row = tl.program_id(0) % strips * ROWS
    unit, first = first_row // UNIT, first_row % UNIT
    token = tl.program_id(0) // strips * TOKENS + tl.arange(0, TOKENS)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    x_rows = x + token.to(tl.int64)[:, None] * cols
    of_unit = masks + unit.to(tl.int64) * cols
    begin = tl.load(starts + unit)
    for column_0 in range(0, cols, COLUMNS):
        column = column_0 + tl.arange(0, COLUMNS)
        inside = (token < tokens)[:, None] & (column < cols)[None, :]
        read = tl.load(x_rows + column[None, :], mask=inside, other=0.0)
        mask = tl.load(of_unit + column, mask=column < cols, other=0)
        weight, count = _weights(values, mask, begin, first, ROWS)
        begin += count
        sums = tl.dot(read, weight, sums, input_precision="ieee")
    row = first_row + tl.arange(0, ROWS)
    sums = finish(sums, bias, row, rows, low, high, HAS_BIAS)
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    to = y + token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=inside)


def linear(
    x: Tensor,
    values: Tensor,
    masks: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias); x [..., cols] -> [..., rows]."""
    BITMASK.check_linear(x, values, masks, starts, bias, rows, cols)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], rows)
    tokens = x.shape[:-1].numel()
    if masks.storage_offset() % 8:
        masks = masks.clone()  # whole columns are read as 64 bits
    packed = values, masks.flatten().view(torch.int64), starts

    def programs(tile: dict[str, int]) -> int:
        return -(-rows // tile["ROWS"]) * -(-tokens // tile["TOKENS"])

    return launch(_linear, "bitmask_linear", programs, x, packed, bias, y, (tokens, rows, cols),
                  (low, high), UNIT=UNIT_ROWS)  # fmt: skip


torch.library.register_kernel("sparseprune_triton::bitmask_linear", "cuda", linear)
