"""The shapes at which kernels break, and the one float64 reference they are compared with."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats import FORMATS, Format, Nm, PackedWeight
from sparseprune.patterns.nm import NM

TESTED = (*FORMATS, Nm(2, 4))
"""Nm() finds other ratios in random zeros."""
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Of float32 sums of some hundred products of standard normal numbers."""


def dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, stored: Tensor | None = None
) -> Tensor:
    """x W^T + bias in float64, over the nonzeros alone: a pruned weight ignores NaN and inf.

    stored: bool, where a format holds zeros as well, which multiply as in a dense layer.
    """
    x, weight = x.double(), weight.double()
    y = x.new_zeros(*x.shape[:-1], len(weight))
    for r, row in enumerate(weight):
        kept = (row if stored is None else stored[r]).nonzero()[:, 0]
        y[..., r] = x[..., kept] @ row[kept]
    return y if bias is None else y + bias.double()


def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    stored: Tensor | None = None,
) -> Tensor:
    """The convolution in float64: one shifted, scaled image added for every nonzero.

    stored: as for :func:`dense_linear`, of the shape of the weight.
    """
    x = F.pad(x.double(), (padding[1], padding[1], padding[0], padding[0]))
    rows, channels, *kernel = weight.shape
    height, width = (
        (x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )
    y = x.new_zeros(len(x), rows, height, width)
    for r, c, i, j in (weight if stored is None else stored).nonzero().tolist():
        top, left = i * dilation[0], j * dilation[1]
        y[:, r] += (
            weight[r, c, i, j].double()
            * x[
                :,
                r // (rows // groups) * channels + c,
                top : top + (height - 1) * stride[0] + 1 : stride[0],
                left : left + (width - 1) * stride[1] + 1 : stride[1],
            ]
        )
    return y if bias is None else y + bias.double()[:, None, None]


def sparse_weight(
    shape: tuple[int, ...], density: float, generator: torch.Generator, zeros: str = "random"
) -> Tensor:
    """A normal weight of which about `density` stays.

    zeros: "random", "empty_rows" (every other row) or "one_column" (all but the last column).
    """
    weight = torch.randn(shape, generator=generator)
    weight[torch.rand(shape, generator=generator) >= density] = 0.0
    if zeros == "empty_rows":
        weight[::2] = 0.0
    if zeros == "one_column":
        weight.view(shape[0], -1)[:, :-1] = 0.0
    return weight


def fitting(fmt: Format, weight: Tensor, groups: int = 1) -> Tensor:
    """The weight, or where n:m cannot hold it, the largest n of every m."""
    if not isinstance(fmt, Nm) or fmt.refuses(weight.flatten(1), groups) is None:
        return weight
    kept = NM(fmt.n or 2, fmt.m or 4).legal(weight.abs(), groups)
    return weight.masked_fill(~kept, 0)


def stored(packed: PackedWeight) -> Tensor:
    """Where the packed weight has a value, be it zero."""
    ones = copy.deepcopy(packed)
    ones.values.fill_(1)  # type: ignore[operator, union-attr]
    return ones.unpack() != 0


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _spoil(x: Tensor) -> Tensor:
    """x with a NaN and both infinities in different places."""
    flat = x.view(-1)
    for place, value in zip((0.1, 0.4, 0.8), (torch.nan, torch.inf, -torch.inf), strict=True):
        flat[int(place * len(flat))] = value
    return x


def _noncontiguous(x: Tensor) -> Tensor:
    """The same numbers in every second place of a larger tensor."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


INPUTS = {
    "plain": lambda x: x,
    "nonfinite": _spoil,
    "noncontiguous": _noncontiguous,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@dataclass(frozen=True)
class LinearProblem:
    """A linear layer and its input [*batch, cols]."""

    name: str
    rows: int = 37
    cols: int = 200
    batch: tuple[int, ...] = (21,)
    density: float = 0.3
    zeros: str = "random"
    bias: bool = True
    input: str = "plain"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight, bias."""
        g = _generator(self.name)
        weight = sparse_weight((self.rows, self.cols), self.density, g, self.zeros)
        x = INPUTS[self.input](torch.randn(*self.batch, self.cols, generator=g))
        return x, weight, torch.randn(self.rows, generator=g) if self.bias else None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ConvProblem:
    """A convolution and its input [batch, channels, height, width]."""

    name: str
    rows: int = 12
    channels: int = 8
    size: tuple[int, int] = (9, 11)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 2
    density: float = 0.3
    zeros: str = "random"
    bias: bool = True
    input: str = "plain"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight, bias."""
        g = _generator(self.name)
        shape = (self.rows, self.channels // self.groups, *self.kernel)
        weight = sparse_weight(shape, self.density, g, self.zeros)
        x = INPUTS[self.input](torch.randn(self.batch, self.channels, *self.size, generator=g))
        return x, weight, torch.randn(self.rows, generator=g) if self.bias else None

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """stride, padding, dilation, groups, as torch.nn.functional.conv2d takes them."""
        return self.stride, self.padding, self.dilation, self.groups

    def __str__(self) -> str:
        return self.name


_TOKENS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300)
_ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 32, 33, 48, 49, 63, 64, 65, 127, 128, 129, 260)
_COLS = (1, 2, 15, 17, 64, 191, 192, 193, 254, 255, 256, 257, 289, 510, 511, 700)

LINEAR = [
    LinearProblem("batch_0", batch=(0,)),
    LinearProblem("batch_0_of_3", batch=(3, 0, 2)),
    LinearProblem("one_vector", batch=()),
    LinearProblem("three_dimensions", batch=(2, 3, 5)),
    LinearProblem("no_bias", bias=False),
    LinearProblem("empty_rows", zeros="empty_rows"),
    LinearProblem("empty_rows_one_token", zeros="empty_rows", batch=(1,)),
    LinearProblem("one_column", zeros="one_column", density=1),
    LinearProblem("all_zero", density=0),
    LinearProblem("all_zero_no_bias_one_token", density=0, bias=False, batch=(1,)),
    LinearProblem("fully_dense", density=1),
    LinearProblem("fully_dense_full_blocks", density=1, rows=8, cols=255, batch=(65,)),
    LinearProblem("very_sparse", density=0.01, cols=1000),
    LinearProblem("one_weight", rows=1, cols=1, density=1, batch=(1,)),
    LinearProblem("no_outputs", rows=0),
    LinearProblem("no_inputs", cols=0),
    LinearProblem("no_inputs_one_token", cols=0, batch=(1,)),
    LinearProblem("last_column_of_16_bits", rows=4, cols=65536, zeros="one_column", density=1),
    *(
        LinearProblem(f"{kind}_{tokens}_tokens", input=kind, batch=(tokens,))
        for kind in ("nonfinite", "noncontiguous", "transposed", "offset")
        for tokens in (1, 4, 37)
    ),
    *(LinearProblem(f"tokens_{n}", batch=(n,)) for n in _TOKENS),
    *(LinearProblem(f"rows_{n}", rows=n, density=0.5) for n in _ROWS),
    *(LinearProblem(f"cols_{n}", rows=9, cols=n, density=0.5) for n in _COLS),
    *(LinearProblem(f"cols_{n}_one_token", rows=9, cols=n, batch=(1,)) for n in (1, 15, 17, 700)),
    *(
        LinearProblem(f"rows_{rows}_tokens_{n}", rows=rows, density=0.5, batch=(n,))
        for rows in (1, 8, 16, 24, 47, 64, 80, 129)
        for n in (1, 2, 3, 4)
    ),
    LinearProblem("one_segment", rows=64, density=0.5),
    LinearProblem("whole_segments", rows=192, cols=300, batch=(70,)),
    LinearProblem("many_threads", rows=130, cols=300, batch=(150,)),
    LinearProblem("many_threads_one_token", rows=700, cols=500, batch=(1,)),
]

CONV = [
    ConvProblem("kernel_3x3"),
    ConvProblem("kernel_1x1", kernel=(1, 1), padding=(0, 0)),
    ConvProblem("kernel_2x2", kernel=(2, 2)),
    ConvProblem("kernel_5x5", kernel=(5, 5), padding=(2, 2), density=0.1),
    ConvProblem("kernel_7x7", kernel=(7, 7), padding=(3, 3), density=0.1, channels=3),
    ConvProblem("kernel_1x7", kernel=(1, 7), padding=(0, 3)),
    ConvProblem("kernel_3x2", kernel=(3, 2), padding=(2, 0)),
    ConvProblem("kernel_of_the_whole_image", kernel=(9, 11), padding=(0, 0), density=0.05),
    ConvProblem("padding_beyond_the_kernel", padding=(4, 5)),
    ConvProblem("no_padding", padding=(0, 0)),
    ConvProblem("stride_2", stride=(2, 2)),
    ConvProblem("stride_2_1x1", stride=(2, 2), kernel=(1, 1), padding=(0, 0)),
    ConvProblem("stride_1x3", stride=(1, 3)),
    ConvProblem("stride_beyond_the_image", stride=(20, 20)),
    ConvProblem("dilation_2", dilation=(2, 2), padding=(2, 2)),
    ConvProblem("dilation_3x1_stride_2", dilation=(3, 1), stride=(2, 2)),
    ConvProblem("even_image", size=(8, 16)),
    ConvProblem("one_pixel", size=(1, 1)),
    ConvProblem("one_pixel_1x1", size=(1, 1), kernel=(1, 1), padding=(0, 0)),
    ConvProblem("one_pixel_many_images", size=(1, 1), batch=70),
    ConvProblem("one_column_image", size=(33, 1)),
    ConvProblem("one_row_image", size=(1, 70)),
    ConvProblem("wide_image", size=(3, 131)),
    ConvProblem("groups_2", groups=2, rows=8),
    ConvProblem("groups_3", groups=3, rows=12, channels=9),
    ConvProblem("groups_2_of_odd_rows", groups=2, rows=6),
    ConvProblem("groups_2_of_64_rows", groups=2, rows=128, channels=4, size=(4, 5)),
    ConvProblem("groups_2_of_96_rows", groups=2, rows=192, channels=4, size=(4, 5)),
    ConvProblem("groups_2_of_128_rows", groups=2, rows=256, channels=4, size=(4, 5)),
    ConvProblem("whole_segments", rows=192, channels=30, size=(9, 10), density=0.4),
    ConvProblem("depthwise", groups=8, rows=8, density=0.7),
    ConvProblem("depthwise_times_4", groups=8, rows=32, density=0.7, stride=(2, 2)),
    ConvProblem("one_output", rows=1),
    ConvProblem("odd_outputs", rows=7, channels=5),
    ConvProblem("many_inputs", rows=5, channels=90, size=(3, 5)),
    ConvProblem("no_bias", bias=False),
    ConvProblem("empty_rows", zeros="empty_rows"),
    ConvProblem("all_zero", density=0),
    ConvProblem("fully_dense", density=1),
    ConvProblem("batch_0", batch=0),
    ConvProblem("batch_0_1x1", batch=0, kernel=(1, 1), padding=(0, 0)),
    ConvProblem("batch_1", batch=1),
    ConvProblem("batch_5", batch=5),
    ConvProblem("nonfinite", input="nonfinite"),
    ConvProblem("nonfinite_stride_2", input="nonfinite", stride=(2, 2), padding=(0, 0)),
    ConvProblem("noncontiguous", input="noncontiguous"),
    ConvProblem("transposed", input="transposed", batch=3),
    ConvProblem("channels_last", input="channels_last"),
    ConvProblem("channels_last_1x1", input="channels_last", kernel=(1, 1), padding=(0, 0)),
    ConvProblem("many_threads", rows=32, channels=16, size=(20, 20)),
    ConvProblem("many_threads_groups", rows=32, channels=16, size=(20, 20), groups=4, density=0.6),
]
