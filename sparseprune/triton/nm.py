"""nm layers in Triton: any n:m, float32 (never TF32), float16, bfloat16.

Triton has no sparse tensor cores: weights are unpacked in the kernel and multiplied as dense ones.
That saves memory and its traffic, not arithmetic, so time is gained at few tokens at best; and a
pruned weight counts as the zero of a dense layer: 0 * inf = NaN, unlike in other backends. A
program computes some rows for a tile of tokens (or output pixels); the tile is measured at the
first call for a shape, so call once before a CUDA graph is captured. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseprune.formats.nm import place_bits
from sparseprune.ops.nm_checks import check_conv2d, check_linear
from sparseprune.ops.windows import conv2d_output, output_size
from sparseprune.triton.finish import finish
from sparseprune.triton.launch import launch, tuned

CONFIGS = [
    triton.Config({"TOKENS": tokens, "ROWS": rows, "COLUMNS": 64}, num_warps=w, num_stages=stages)
    for tokens, rows, w, stages in (
        (16, 16, 2, 4), (16, 32, 2, 4), (16, 64, 4, 3), (32, 64, 4, 3), (64, 64, 4, 3),
        (128, 64, 4, 3), (128, 128, 8, 3),
    )
]  # fmt: skip
_tuned = tuned(CONFIGS, interpreted=1)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    values, places, row, column, rows, cols, row_values, row_bytes,
    N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The dense weights [rows of the program, columns] of these rows and columns."""
    inside = (row < rows)[:, None] & (column < cols)[None, :]
    wide = row.to(tl.int64)[:, None]
    first = column // M * N
    made = tl.zeros((row.shape[0], column.shape[0]), values.dtype.element_ty)
    for i in tl.static_range(N):
        at = (first + i)[None, :]
        byte = tl.load(places + wide * row_bytes + at * BITS // 8, mask=inside, other=0)
        place = (byte.to(tl.int32) >> at * BITS % 8) & ((1 << BITS) - 1)
        value = tl.load(values + wide * row_values + at, mask=inside, other=0.0)
        made = tl.where(place == (column % M)[None, :], value, made)
    return made


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, values, places, bias, y, tokens, tuned_tokens, rows, cols, low, high, row_values, row_bytes,
    HAS_BIAS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    strips = tl.cdiv(rows, ROWS)
    row = tl.program_id(0) % strips * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) // strips * TOKENS + tl.arange(0, TOKENS)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    x_rows = x + token.to(tl.int64)[:, None] * cols
    for first in range(0, cols, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = (token < tokens)[:, None] & (column < cols)[None, :]
        read = tl.load(x_rows + column[None, :], mask=inside, other=0.0)
        weight = _weights(values, places, row, column, rows, cols, row_values, row_bytes,
                          N, M, BITS)  # fmt: skip
        sums = tl.dot(read, tl.trans(weight), sums, input_precision="ieee")
    sums = finish(sums, bias, row, rows, low, high, HAS_BIAS)
    mask = (token < tokens)[:, None] & (row < rows)[None, :]
    to = y + token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)


@_tuned  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _conv2d(  # type: ignore[no-untyped-def]
    x, values, places, bias, y, tokens, tuned_tokens, rows, cols, low, high, row_values, row_bytes,
    x_image, x_channel, x_row, x_column, y_image, y_channel, y_row, y_column,
    height, width, out_h, out_w, channels, rows_per_group, kernel_h, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, TAPS_FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr, N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    per_group = tl.cdiv(rows_per_group, ROWS)
    strips = rows // rows_per_group * per_group
    strip = tl.program_id(0) % strips
    group = strip // per_group
    end = (group + 1) * rows_per_group
    row = group * rows_per_group + strip % per_group * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) // strips * TOKENS + tl.arange(0, TOKENS)
    image = (token // (out_h * out_w)).to(tl.int64)
    out_row, out_column = token // out_w % out_h, token % out_w
    top, left = out_row * stride_h - padding_h, out_column * stride_w - padding_w
    x_rows = x + image * x_image + group.to(tl.int64) * channels * x_channel
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in range(0, cols, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        if TAPS_FIRST:
            channel, tap = column % channels, column // channels
        else:
            channel, tap = column // (kernel_h * kernel_w), column % (kernel_h * kernel_w)
        i = top[:, None] + (tap // kernel_w * dilation_h)[None, :]
        j = left[:, None] + (tap % kernel_w * dilation_w)[None, :]
        inside = (token < tokens)[:, None] & (column < cols)[None, :]
        inside = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        at = x_rows[:, None] + (channel.to(tl.int64) * x_channel)[None, :]
        at += i.to(tl.int64) * x_row + j.to(tl.int64) * x_column
        read = tl.load(at, mask=inside, other=0.0)
        weight = _weights(values, places, row, column, end, cols, row_values, row_bytes,
                          N, M, BITS)  # fmt: skip
        sums = tl.dot(read, tl.trans(weight), sums, input_precision="ieee")
    sums = finish(sums, bias, row, end, low, high, HAS_BIAS)
    mask = (token < tokens)[:, None] & (row < end)[None, :]
    to = y + image * y_image + out_row.to(tl.int64) * y_row + out_column.to(tl.int64) * y_column
    to = to[:, None] + (row.to(tl.int64) * y_channel)[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)


def linear(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias); x [..., cols] -> [..., rows]."""
    check_linear(x, values, places, bias, rows, cols, n, m)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], rows)
    sizes = x.shape[:-1].numel(), rows, cols
    return _launch(
        _linear, "nm_linear", x, (values, places), bias, y, sizes, (low, high), (n, m), 1
    )


def conv2d(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
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
    check_conv2d(x, values, places, bias, rows, cols, n, m, taps, *window, groups)
    size = output_size(x, *window)
    y = conv2d_output(x, rows, size)
    sizes = x.shape[0] * size[0] * size[1], rows, cols
    numbers = (*x.stride(), *y.stride(), *x.shape[2:], *size, x.shape[1] // groups,
               rows // groups, *kernel_size, *stride, *padding, *dilation)  # fmt: skip
    return _launch(_conv2d, "nm_conv2d", x, (values, places), bias, y, sizes, (low, high), (n, m),
                   groups, *numbers, TAPS_FIRST=taps > 1)  # fmt: skip


def _launch(
    kernel: Any,
    op: str,
    x: Tensor,
    packed: tuple[Tensor, Tensor],
    bias: Tensor | None,
    y: Tensor,
    sizes: tuple[int, int, int],
    clamp: tuple[float | None, float | None],
    ratio: tuple[int, int],
    groups: int,
    *numbers: int,
    **flags: bool,
) -> Tensor:
    n, m = ratio
    of_row = (part.shape[1] for part in packed)

    def programs(tile: dict[str, int]) -> int:
        strips = groups * -(-(sizes[1] // groups) // tile["ROWS"])
        return strips * -(-sizes[0] // tile["TOKENS"])

    return launch(kernel, op, programs, x, packed, bias, y, sizes, clamp, *of_row, *numbers,
                  **flags, N=n, M=m, BITS=place_bits(m))  # fmt: skip


for _name, _kernel in (("nm_linear", linear), ("nm_conv2d", conv2d)):
    torch.library.register_kernel(f"sparseprune_triton::{_name}", "cuda", _kernel)
