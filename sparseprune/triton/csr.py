"""csr layers in the layout "rows" in Triton: Linear in float32 and half, Conv2d in float32.

A program computes one row of W for a tile of tokens (or output pixels), some nonzeros at a time:
each reads x where it lies. A pruned weight contributes nothing. The tile is measured at the first
call for a shape, so call once before a CUDA graph is captured. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseprune.ops.csr_checks import check_conv2d, check_linear
from sparseprune.ops.windows import output_size
from sparseprune.triton.finish import finish
from sparseprune.triton.launch import launch, tuned

CONFIGS = [
    triton.Config({"TOKENS": tokens, "NONZEROS": nonzeros}, num_warps=warps)
    for tokens, nonzeros, warps in (
        (1, 128, 1), (1, 256, 2), (8, 64, 2), (16, 32, 2), (32, 32, 4), (64, 16, 4), (128, 8, 4),
    )
]  # fmt: skip
_tuned = tuned(CONFIGS, interpreted=3, least=1)


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, values, columns, starts, bias, y, tokens, tuned_tokens, rows, cols, low, high,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, NONZEROS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % rows
    token = tl.program_id(0) // rows * TOKENS + tl.arange(0, TOKENS)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    sums = tl.zeros((TOKENS, NONZEROS), tl.float32)
    x_rows = x + token.to(tl.int64)[:, None] * cols
    for first in range(begin, end, NONZEROS):
        at = first + tl.arange(0, NONZEROS)
        weight = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
        column = tl.load(columns + at, mask=at < end, other=0).to(tl.int32)
        inside = (token < tokens)[:, None] & (at < end)[None, :]
        read = tl.load(x_rows + column[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += read * weight[None, :]
    own = row + tl.arange(0, 1)
    total = finish(tl.sum(sums, 1)[:, None], bias, own, rows, low, high, HAS_BIAS)
    to = y + token.to(tl.int64)[:, None] * rows + own[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=(token < tokens)[:, None])


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _conv2d(  # type: ignore[no-untyped-def]
    x, values, columns, starts, bias, y, tokens, tuned_tokens, rows, cols, low, high,
    x_image, x_channel, x_row, x_column,
    height, width, out_h, out_w, channels, rows_per_group, kernel_h, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, NONZEROS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % rows
    token = tl.program_id(0) // rows * TOKENS + tl.arange(0, TOKENS)
    image, pixel = (token // (out_h * out_w)).to(tl.int64), token % (out_h * out_w)
    top, left = pixel // out_w * stride_h - padding_h, pixel % out_w * stride_w - padding_w
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    sums = tl.zeros((TOKENS, NONZEROS), tl.float32)
    of_image = x + image * x_image + (row // rows_per_group).to(tl.int64) * channels * x_channel
    for first in range(begin, end, NONZEROS):
        at = first + tl.arange(0, NONZEROS)
        weight = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
        column = tl.load(columns + at, mask=at < end, other=0).to(tl.int32)
        channel, tap = column // (kernel_h * kernel_w), column % (kernel_h * kernel_w)
        i = top[:, None] + (tap // kernel_w * dilation_h)[None, :]
        j = left[:, None] + (tap % kernel_w * dilation_w)[None, :]
        inside = (token < tokens)[:, None] & (at < end)[None, :]
        inside = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        places = of_image[:, None] + (channel.to(tl.int64) * x_channel)[None, :]
        places += i.to(tl.int64) * x_row + j.to(tl.int64) * x_column
        read = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        sums += read * weight[None, :]
    own = row + tl.arange(0, 1)
    total = finish(tl.sum(sums, 1)[:, None], bias, own, rows, low, high, HAS_BIAS)
    to = y + (image * rows + row) * out_h * out_w + pixel
    tl.store(to[:, None], total.to(y.dtype.element_ty), mask=(token < tokens)[:, None])


def linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias); x [..., cols] -> [..., rows]."""
    check_linear(x, values, columns, counts, starts, bias, rows, cols, block)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], rows)
    sizes = x.shape[:-1].numel(), rows, cols
    return _launch(_linear, "csr_linear", x, (values, columns, starts), bias, y, sizes, block,
                   (low, high))  # fmt: skip


def conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(conv(x, W) + bias), x in any memory format, y contiguous."""
    window = (kernel_size, stride, padding, dilation)
    check_conv2d(x, values, columns, counts, starts, bias, rows, cols, block, *window, groups)
    size = output_size(x, *window)
    y = x.new_empty(x.shape[0], rows, *size)
    sizes = x.shape[0] * size[0] * size[1], rows, cols
    numbers = (*x.stride(), *x.shape[2:], *size, x.shape[1] // groups, rows // groups,
               *kernel_size, *stride, *padding, *dilation)  # fmt: skip
    return _launch(_conv2d, "csr_conv2d", x, (values, columns, starts), bias, y, sizes, block,
                   (low, high), *numbers)  # fmt: skip


def _launch(
    kernel: Any,
    op: str,
    x: Tensor,
    packed: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    y: Tensor,
    sizes: tuple[int, int, int],
    block: int,
    clamp: tuple[float | None, float | None],
    *numbers: int,
) -> Tensor:
    torch._check(
        block == 0,
        lambda: (
            f'{op}: in Triton the layout must be "rows", got blocks of {block} columns; '
            'pack with Csr("rows")'
        ),
    )

    def programs(tile: dict[str, int]) -> int:
        return sizes[1] * -(-sizes[0] // tile["TOKENS"])

    return launch(kernel, op, programs, x, packed, bias, y, sizes, clamp, *numbers)


for _name, _kernel in (("csr_linear", linear), ("csr_conv2d", conv2d)):
    torch.library.register_kernel(f"sparseprune_triton::{_name}", "cuda", _kernel)
