"""The steps of a program: what one native call computes, as data (as text: program/text.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

Triple: TypeAlias = tuple[int, int, int]
"""(depth, height, width); dimensions that an image lacks are 1 (0 for padding)."""

ACTIVATIONS = ("clamp", "leaky", "elu", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid",
               "sigmoid", "tanh", "mish")  # fmt: skip
PADDINGS = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Activation:
    """What a step does to its sums last.

    Args:
        kind: of ``ACTIVATIONS``.
        low, high: of "clamp": lowest and highest output, so (0, inf) is ReLU and the default is
            nothing; low is the slope of "leaky"; "elu" is high x for x > 0, else low (e^x - 1).
    """

    kind: str = "clamp"
    low: float = -math.inf
    high: float = math.inf


def clamped(low: float | None, high: float | None) -> Activation:
    """Limits of a layer, None where it has none, as an activation."""
    return Activation(
        "clamp", -math.inf if low is None else low, math.inf if high is None else high
    )


@dataclass(frozen=True)
class Window:
    """Where a convolution or a pooling reads.

    Args:
        kernel, stride, dilation: each >= 1.
        before, after: padding on both sides of every dimension, >= 0.
        mode: of ``PADDINGS``; poolings take "zeros" and leave their padding out of maxima.
    """

    kernel: Triple = (1, 1, 1)
    stride: Triple = (1, 1, 1)
    before: Triple = (0, 0, 0)
    after: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    mode: str = "zeros"


def triple(sizes: Sequence[int], missing: int = 1) -> Triple:
    """Sizes of 1 to 3 dimensions, the last one first to be there."""
    depth, height, width = (missing,) * (3 - len(sizes)) + tuple(sizes)
    return depth, height, width


@dataclass(frozen=True)
class Step:
    """One line of a program. The fields of a subclass, in order, are the words of its line."""

    word: ClassVar[str]


@dataclass(frozen=True)
class Input(Step):
    """The next input tensor: "image" [N, channels, *dims sizes] or "tokens" [..., channels].

    Tokens of 0 channels may have any number.
    """

    word: ClassVar[str] = "input"
    out: int
    kind: str
    channels: int
    dims: int


@dataclass(frozen=True)
class Csr(Step):
    """out = activation(W x + bias + residual): a linear layer on tokens, a convolution on images.

    Args:
        out, x: values.
        residual: a value of the shape of out, or -1.
        tensors: index of the first of its tensors: values, columns, counts, starts and, where
            has_bias, bias; as in sparseprune.formats.csr.
        rows, cols, block: of the packed weight (block 0: layout "rows").
        groups: of the convolution.
        has_bias: 0 or 1.
    """

    word: ClassVar[str] = "csr"
    out: int
    x: int
    residual: int
    tensors: int
    rows: int
    cols: int
    block: int
    groups: int
    has_bias: int
    window: Window
    activation: Activation


@dataclass(frozen=True)
class OnTokens(Step):
    """out = activation(W x + bias + residual), W [rows, cols]: a linear layer, on tokens alone."""

    out: int
    x: int
    residual: int
    tensors: int
    rows: int
    cols: int
    has_bias: int
    activation: Activation


@dataclass(frozen=True)
class Bitmask(OnTokens):
    """Tensors: values, masks, starts, as in sparseprune.formats.bitmask; bias where has_bias."""

    word: ClassVar[str] = "bitmask"


@dataclass(frozen=True)
class Sell(OnTokens):
    """Tensors: values, columns, windows, starts, order, as in sparseprune.formats.sell; bias."""

    word: ClassVar[str] = "sell"


@dataclass(frozen=True)
class Linear(OnTokens):
    """Tensors: weight [rows, cols] float32, dense; bias where has_bias."""

    word: ClassVar[str] = "linear"


@dataclass(frozen=True)
class Depthwise(Step):
    """Channel r of out reads channel r // multiplier of x: out = act(w * x + bias + residual).

    Tensors: weight [channels * multiplier, taps] float32 (any shape with these elements in this
    order), and bias where has_bias. One tap with stride 1 is a scale and shift per channel, of
    tokens as well.
    """

    word: ClassVar[str] = "depthwise"
    out: int
    x: int
    residual: int
    tensors: int
    channels: int
    multiplier: int
    has_bias: int
    window: Window
    activation: Activation


@dataclass(frozen=True)
class Pool(Step):
    """Maximum or average over windows of an image. kind: "max" or "avg".

    ceil: 1 rounds sizes up as torch does. count_padding: 1 divides averages by the whole window
    where it overlaps the padding.
    """

    word: ClassVar[str] = "pool"
    out: int
    x: int
    kind: str
    ceil: int
    count_padding: int
    window: Window


@dataclass(frozen=True)
class Mean(Step):
    """Mean of every channel of an image: sizes become 1."""

    word: ClassVar[str] = "mean"
    out: int
    x: int


@dataclass(frozen=True)
class Adaptive(Step):
    """Averages over windows that share out an image: sizes become `size`, where 0 keeps one.

    Output i of n is the mean of the elements from floor(i * size / n) to ceil((i + 1) * size / n).
    """

    word: ClassVar[str] = "adaptive"
    out: int
    x: int
    size: Triple


@dataclass(frozen=True)
class Upsample(Step):
    """Every element of an image `times` times along each dimension: the nearest one."""

    word: ClassVar[str] = "upsample"
    out: int
    x: int
    times: Triple


@dataclass(frozen=True)
class Add(Step):
    """out = activation(x + residual), same shapes; residual -1 leaves the activation alone."""

    word: ClassVar[str] = "add"
    out: int
    x: int
    residual: int
    activation: Activation


@dataclass(frozen=True)
class Multiply(Step):
    """out = x * y, element by element, same shapes."""

    word: ClassVar[str] = "multiply"
    out: int
    x: int
    y: int


@dataclass(frozen=True)
class Scale(Step):
    """out = activation(x * by): by is an image of sizes 1 with the channels of x."""

    word: ClassVar[str] = "scale"
    out: int
    x: int
    by: int
    activation: Activation


@dataclass(frozen=True)
class Cat(Step):
    """Channels of x, then of y."""

    word: ClassVar[str] = "cat"
    out: int
    x: int
    y: int


@dataclass(frozen=True)
class Channels(Step):
    """Channels [begin, begin + count) of x, its `groups` groups of C / groups dealt in turn.

    Channel i of x so dealt is channel (i % groups) * (C / groups) + i // groups of x; one group
    leaves the order.
    """

    word: ClassVar[str] = "channels"
    out: int
    x: int
    groups: int
    begin: int
    count: int


@dataclass(frozen=True)
class Flatten(Step):
    """An image [N, C, *sizes] as tokens [N, C * sizes]."""

    word: ClassVar[str] = "flatten"
    out: int
    x: int


@dataclass(frozen=True)
class Output(Step):
    """The next output tensor; an image keeps the number of spatial dimensions of the inputs."""

    word: ClassVar[str] = "output"
    x: int
