"""Layers with weights: sparse ones, dense convolutions, batch normalisation in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparseprune.formats import BitmaskWeight, CsrWeight, PackedWeight, SellWeight
from sparseprune.nn import SparseConv, SparseLinear
from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.derive import can_place, layout_for
from sparseprune.program.steps import (
    Activation,
    Add,
    Bitmask,
    Csr,
    Depthwise,
    Linear,
    OnTokens,
    Pool,
    Sell,
    Window,
    clamped,
    triple,
)

FEW: dict[type[PackedWeight], type[OnTokens]] = {BitmaskWeight: Bitmask, SellWeight: Sell}
"""What packs a weight for few tokens -> its step."""


def _csr(b: Builder, x: int, packed: tuple[str, Any], bias: tuple[str, Any], **fields: Any) -> int:
    weight = packed[1]
    return b.add(Csr, x=x, residual=-1, tensors=b.use(packed, bias), rows=weight.rows,
                 cols=weight.cols, block=weight.block, has_bias=int(bias[1] is not None),
                 **fields)  # fmt: skip


def _named(call: Call, name: str) -> str:
    return f"{call.path}.{name}"


def linear(call: Call, m: SparseLinear, input: Any) -> Lowered | None:
    """A packed linear layer on the last dimension."""
    packed, bias = (_named(call, "weight"), m.weight), (_named(call, "bias"), m.bias)

    def csr(b: Builder, x: list[int]) -> int:
        return _csr(b, x[0], packed, bias, groups=1, window=Window(), activation=clamped(*m.clamp))

    def few(b: Builder, x: list[int]) -> int:
        kind = FEW[type(m.weight)]
        return _plain(b, kind, x[0], packed, bias, m, activation=clamped(*m.clamp))

    if m.weight.dtype != torch.float32:  # as all of a program
        return None
    emit = {CsrWeight: csr, **dict.fromkeys(FEW, few)}.get(type(m.weight))
    return None if emit is None else Lowered((input,), emit, "tokens", "tokens", sparse=True)


def dense_linear(call: Call, m: nn.Linear, input: Any) -> Lowered | None:
    """A linear layer that stays dense: the program reads the weight where it lies."""
    if m.weight.dtype != torch.float32 or not m.weight.is_contiguous():
        return None
    weight, bias = (_named(call, "weight"), m.weight), (_named(call, "bias"), m.bias)

    def emit(b: Builder, x: list[int]) -> int:
        return _plain(b, Linear, x[0], weight, bias, m, activation=Activation())

    return Lowered((input,), emit, "tokens", "tokens")


def _plain(b: Builder, kind: Any, x: int, weight: tuple[str, Any], bias: tuple[str, Any], m: Any,
           **fields: Any) -> int:  # fmt: skip
    """A step on tokens alone, which needs no window."""
    return b.add(kind, x=x, residual=-1, tensors=b.use(weight, bias), rows=m.out_features,
                 cols=m.in_features, has_bias=int(bias[1] is not None), **fields)  # fmt: skip


def sparse_conv(call: Call, m: SparseConv, input: Any) -> Lowered | None:
    """A packed convolution."""
    if not isinstance(m.weight, CsrWeight) or call.rank(input) != m.dims + 2:
        return None

    def emit(b: Builder, x: list[int]) -> int:
        packed, bias = (_named(call, "weight"), m.weight), (_named(call, "bias"), m.bias)
        return _csr(b, x[0], packed, bias, groups=m.groups, window=m.window(),
                    activation=clamped(*m.clamp))  # fmt: skip

    return Lowered((input,), emit, "image", "image", sparse=True)


def conv(call: Call, m: Any, input: Any) -> Lowered | None:
    """A dense convolution: packed by the program, or as it is where it filters every channel."""
    if call.rank(input) != len(m.kernel_size) + 2:
        return None
    bias = (_named(call, "bias"), m.bias)
    if m.groups == m.in_channels > 1:

        def filters(b: Builder, x: list[int]) -> int:
            first = b.use((_named(call, "weight"), m.weight), bias)
            return b.add(Depthwise, x=x[0], residual=-1, tensors=first, channels=m.in_channels,
                         multiplier=m.out_channels // m.in_channels,
                         has_bias=int(m.bias is not None), window=_window(m),
                         activation=Activation())  # fmt: skip

        return Lowered((input,), filters, "image", "image")
    if layout_for(m.weight.detach().flatten(1), m.groups) is None:
        return None

    def emit(b: Builder, x: list[int]) -> int:
        packed = b.derive("conv", call.path, m)
        return _csr(b, x[0], packed, bias, groups=m.groups, window=_window(m),
                    activation=Activation())  # fmt: skip

    return Lowered((input,), emit, "image", "image")


def _window(m: Any) -> Window:
    """The window of a dense convolution, whose "same" may be uneven."""
    total = [0 if m.padding == "valid" else d * (k - 1)
             for d, k in zip(m.dilation, m.kernel_size, strict=True)]  # fmt: skip
    before = [t // 2 for t in total] if isinstance(m.padding, str) else list(m.padding)
    after = [t - t // 2 for t in total] if isinstance(m.padding, str) else list(m.padding)
    return Window(triple(m.kernel_size), triple(m.stride), triple(before, 0), triple(after, 0),
                  triple(m.dilation), m.padding_mode)  # fmt: skip


def strided(call: Call, input: Any, index: Any) -> Lowered | None:
    """x[:, :, ::a, ::b]: a pooling over single pixels."""
    rank = call.rank(input)
    if rank not in (3, 4, 5) or not isinstance(index, tuple) or len(index) != rank:
        return None
    if not all(isinstance(i, slice) and i.start is None and i.stop is None for i in index):
        return None
    strides = [1 if i.step is None else i.step for i in index]
    if strides[:2] != [1, 1] or not all(type(s) is int and s > 0 for s in strides):
        return None
    window = Window(stride=triple(strides[2:]))

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Pool, x=x[0], kind="max", ceil=0, count_padding=1, window=window)

    return Lowered((input,), emit, "image", "image")


def pad(
    call: Call, input: Any, pad: Any, mode: str = "constant", value: Any = None
) -> Lowered | None:
    """Zeros around an image, or before and after its channels."""
    rank = call.rank(input)
    if rank not in (3, 4, 5) or mode != "constant" or value not in (None, 0):
        return None
    sides = list(pad) + [0] * (2 * rank - len(pad))
    if not all(type(side) is int and side >= 0 for side in sides) or any(sides[-2:]):
        return None
    before, after = sides[2 * rank - 4 : 2 * rank - 2]
    sizes = sides[: 2 * rank - 4]  # the last one's come first
    window = Window(before=triple(sizes[-2::-2], 0), after=triple(sizes[::-2], 0))
    channels = call.shapes(input)[0][1]  # type: ignore[index]
    if not can_place(channels, before, after):
        return None

    def emit(b: Builder, x: list[int]) -> int:
        packed = b.derive("place", "", None, channels, before, after)
        return _csr(b, x[0], packed, ("", None), groups=1, window=window,
                    activation=Activation())  # fmt: skip

    return Lowered((input,), emit, "image", "image")


def pad_module(call: Call, m: Any, input: Any) -> Lowered | None:
    """nn.ZeroPad and nn.ConstantPad of every dimension."""
    return pad(call, input, m.padding, value=m.value)


NORM_RANKS = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


def norm(call: Call, m: Any, input: Any) -> Lowered | None:
    """Batch normalisation by its running statistics: a scale and a shift of every channel."""
    if m.training or m.running_mean is None or call.rank(input) != NORM_RANKS[type(m)]:
        return None

    def emit(b: Builder, x: list[int]) -> int:
        first = b.use(b.derive("scale", call.path, m), b.derive("shift", call.path, m))
        return b.add(Depthwise, x=x[0], residual=-1, tensors=first, channels=m.num_features,
                     multiplier=1, has_bias=1, window=Window(),
                     activation=Activation())  # fmt: skip

    return Lowered((input,), emit, "image", "image")


def prelu(call: Call, m: Any, input: Any) -> Lowered | None:
    """A slope for every channel, or one for all, where x is negative."""
    shapes = call.shapes(input)
    if shapes is None or len(shapes[0]) not in (3, 4, 5):
        return None
    channels = shapes[0][1]
    if m.weight.numel() not in (1, channels):
        return None

    def slopes(b: Builder) -> tuple[str, Any]:
        if m.weight.numel() == channels:
            return _named(call, "weight"), m.weight
        return b.derive("slope", call.path, m, channels)

    return _prelu(input, slopes, channels)


def prelu_function(call: Call, input: Any, weight: Any) -> Lowered | None:
    """The same with a parameter of the model."""
    shapes, shape = call.shapes(input), call.shapes(weight)
    if shapes is None or shape is None or len(shapes[0]) not in (3, 4, 5):
        return None
    if weight.op != "get_attr" or shape[0] != (shapes[0][1],):
        return None
    return _prelu(input, lambda b: (str(weight.target), weight), shapes[0][1])


def _prelu(input: Any, slopes: Callable[[Builder], tuple[str, Any]], channels: int) -> Lowered:
    """max(x, 0) + slope min(x, 0), which infinities do not turn to NaN."""

    def emit(b: Builder, x: list[int]) -> int:
        above = b.add(Add, x=x[0], residual=-1, activation=Activation("clamp", 0.0))
        below = b.add(Add, x=x[0], residual=-1, activation=Activation("clamp", -math.inf, 0.0))
        return b.add(Depthwise, x=below, residual=above, tensors=b.use(slopes(b)),
                     channels=channels, multiplier=1, has_bias=0, window=Window(),
                     activation=Activation())  # fmt: skip

    return Lowered((input,), emit, "image", "image")
