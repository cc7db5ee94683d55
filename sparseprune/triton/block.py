"""block layers in Triton: blocks of any size, float32 (never TF32), float16, bfloat16.

A program computes some rows of one row of blocks for a tile of tokens (or output pixels). Tile,
split of a block's rows among programs, stages and warps are measured at the first call for a shape,
so call once before a CUDA graph is captured. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseprune.ops.block_checks import check_conv2d, check_linear
from sparseprune.ops.windows import conv2d_output, output_size
from sparseprune.triton.finish import LEAST, finish
from sparseprune.triton.launch import launch, tuned

CONFIGS = [
    triton.Config({"TOKENS": tokens, "SPLIT": split}, num_warps=warps, num_stages=stages)
    for tokens, split, warps, stages in (
        (16, 1, 2, 4), (16, 2, 2, 5), (16, 4, 2, 6), (32, 1, 4, 4), (32, 2, 2, 5),
        (64, 1, 4, 3), (64, 2, 4, 4), (128, 1, 4, 3), (128, 1, 8, 4), (256, 1, 8, 3),
    )
]  # fmt: skip
_tuned = tuned(
    CONFIGS,
    interpreted=1,
    fits=lambda constants, args: args["PADDED_R"] // constants["SPLIT"] >= LEAST,
)


@triton.jit  # type: ignore[untyped-decorator]
def _strip(starts, rows, R: tl.constexpr, PADDED_R: tl.constexpr, SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Place of the program: tile of tokens, row of blocks, rows inside a block, its blocks."""
    ROWS: tl.constexpr = PADDED_R // SPLIT
    strips = tl.cdiv(rows, R) * SPLIT
    strip = tl.program_id(0) % strips
    block_row = strip // SPLIT
    inner = strip % SPLIT * ROWS + tl.arange(0, ROWS)
    begin = tl.load(starts + block_row)
    return tl.program_id(0) // strips, block_row, inner, begin, tl.load(starts + block_row + 1)


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, values, columns, starts, bias, y, tokens, tuned_tokens, rows, cols, low, high,
    HAS_BIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, PADDED_R: tl.constexpr,
    PADDED_C: tl.constexpr, TOKENS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    tile, block_row, inner, begin, end = _strip(starts, rows, R, PADDED_R, SPLIT)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    k = tl.arange(0, PADDED_C)
    sums = tl.zeros((TOKENS, PADDED_R // SPLIT), tl.float32)
    x_rows = x + token.to(tl.int64)[:, None] * cols
    weights = values + begin.to(tl.int64) * R * C + inner[:, None] * C + k[None, :]
    w_mask = (inner < R)[:, None] & (k < C)[None, :]
    for b in range(begin, end):
        column = tl.load(columns + b) * C + k
        inside = (token < tokens)[:, None] & ((k < C) & (column < cols))[None, :]
        read = tl.load(x_rows + column[None, :], mask=inside, other=0.0)
        weight = tl.load(weights, mask=w_mask, other=0.0)
        weights += R * C
        sums = tl.dot(read, tl.trans(weight), sums, input_precision="ieee")
    row = block_row * R + inner
    sums = finish(sums, bias, row, rows, low, high, HAS_BIAS)
    mask = (token < tokens)[:, None] & ((inner < R) & (row < rows))[None, :]
    to = y + token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _conv2d(  # type: ignore[no-untyped-def]
    x, values, columns, starts, bias, y, tokens, tuned_tokens, rows, cols, low, high,
    x_image, x_channel, x_row, x_column, y_image, y_channel, y_row, y_column,
    height, width, out_h, out_w, channels, rows_per_group, kernel_h, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, TAPS_FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, PADDED_R: tl.constexpr,
    PADDED_C: tl.constexpr, TOKENS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    tile, block_row, inner, begin, end = _strip(starts, rows, R, PADDED_R, SPLIT)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    image = (token // (out_h * out_w)).to(tl.int64)
    out_row, out_column = token // out_w % out_h, token % out_w
    top, left = out_row * stride_h - padding_h, out_column * stride_w - padding_w
    group = block_row * R // rows_per_group
    x_rows = x + image * x_image + group.to(tl.int64) * channels * x_channel
    k = tl.arange(0, PADDED_C)
    sums = tl.zeros((TOKENS, PADDED_R // SPLIT), tl.float32)
    weights = values + begin.to(tl.int64) * R * C + inner[:, None] * C + k[None, :]
    w_mask = (inner < R)[:, None] & (k < C)[None, :]
    for b in range(begin, end):
        column = tl.load(columns + b) * C + k
        if TAPS_FIRST:
            channel, tap = column % channels, column // channels
        else:
            channel, tap = column // (kernel_h * kernel_w), column % (kernel_h * kernel_w)
        i = top[:, None] + (tap // kernel_w * dilation_h)[None, :]
        j = left[:, None] + (tap % kernel_w * dilation_w)[None, :]
        inside = (token < tokens)[:, None] & ((k < C) & (column < cols))[None, :]
        inside = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        at = x_rows[:, None] + (channel.to(tl.int64) * x_channel)[None, :]
        at += i.to(tl.int64) * x_row + j.to(tl.int64) * x_column
        read = tl.load(at, mask=inside, other=0.0)
        weight = tl.load(weights, mask=w_mask, other=0.0)
        weights += R * C
        sums = tl.dot(read, tl.trans(weight), sums, input_precision="ieee")
    row = block_row * R + inner
    sums = finish(sums, bias, row, rows, low, high, HAS_BIAS)
    mask = (token < tokens)[:, None] & ((inner < R) & (row < rows))[None, :]
    to = y + image * y_image + out_row.to(tl.int64) * y_row + out_column.to(tl.int64) * y_column
    to = to[:, None] + (row.to(tl.int64) * y_channel)[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)


def linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias); x [..., cols] -> [..., rows]."""
    check_linear(x, values, columns, starts, bias, rows, cols)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], rows)
    sizes = x.shape[:-1].numel(), rows, cols
    return _launch(_linear, "block_linear", x, (values, columns, starts), bias, y, sizes,
                   (low, high))  # fmt: skip


def conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    taps: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(conv(x, W) + bias), x and y in any memory format."""
    window = (kernel_size, stride, padding, dilation)
    check_conv2d(x, values, columns, starts, bias, rows, cols, taps, *window, groups)
    size = output_size(x, *window)
    y = conv2d_output(x, rows, size)
    sizes = x.shape[0] * size[0] * size[1], rows, cols
    numbers = (*x.stride(), *y.stride(), *x.shape[2:], *size, x.shape[1] // groups,
               rows // groups, *kernel_size, *stride, *padding, *dilation)  # fmt: skip
    return _launch(_conv2d, "block_conv2d", x, (values, columns, starts), bias, y, sizes,
                   (low, high), *numbers, TAPS_FIRST=taps > 1)  # fmt: skip


def _launch(
    kernel: Any,
    op: str,
    x: Tensor,
    packed: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    y: Tensor,
    sizes: tuple[int, int, int],
    clamp: tuple[float | None, float | None],
    *numbers: int,
    **flags: bool,
) -> Tensor:
    _, r, c = packed[0].shape
    padded_r, padded_c = (max(LEAST, triton.next_power_of_2(side)) for side in (r, c))

    def programs(tile: dict[str, int]) -> int:
        return -(-sizes[1] // r) * tile["SPLIT"] * -(-sizes[0] // tile["TOKENS"])

    return launch(kernel, op, programs, x, packed, bias, y, sizes, clamp, *numbers,
                  **flags, R=r, C=c, PADDED_R=padded_r, PADDED_C=padded_c)  # fmt: skip


for _name, _kernel in (("block_linear", linear), ("block_conv2d", conv2d)):
    torch.library.register_kernel(f"sparseprune_triton::{_name}", "cuda", _kernel)
