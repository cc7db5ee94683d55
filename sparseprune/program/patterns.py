"""What a program can compute: module type, function or method -> how it becomes steps.

A pattern takes a :class:`Call` and the arguments as torch names them, and gives a
:class:`Lowered`, or None where these arguments are not supported. To support another op, write
its pattern and add one entry to ``MODULES``, ``FUNCTIONS`` or ``METHODS``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparseprune.nn import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear
from sparseprune.program.attention import attend
from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.patterns_act import ACTIVATION_FUNCTIONS, ACTIVATION_METHODS, ACTIVATIONS
from sparseprune.program.patterns_channels import (
    cat,
    channel_shuffle,
    channel_slice,
    narrow,
    shuffle_module,
    upsample,
    upsample_module,
)
from sparseprune.program.patterns_layers import (
    conv,
    dense_linear,
    linear,
    norm,
    pad,
    pad_module,
    prelu,
    prelu_function,
    sparse_conv,
    strided,
)
from sparseprune.program.patterns_pool import (
    Pattern,
    adaptive_mean,
    mean,
    mean_module,
    pool,
    pool_module,
)
from sparseprune.program.patterns_sequences import (
    attention,
    factors,
    layer_norm,
    norm_function,
    permute,
    rotary,
)
from sparseprune.program.rotary import rotate
from sparseprune.program.steps import Activation, Add, Flatten, Multiply, Scale


def identity(call: Call, input: Any, *_: Any, **__: Any) -> Lowered:
    """Nothing."""
    return Lowered((input,), lambda b, x: x[0], free=True)


def dropout(call: Call, input: Any, p: float = 0.5, training: bool = True,
            inplace: bool = False) -> Lowered | None:  # fmt: skip
    """Nothing, in eval mode."""
    return None if training is not False and p != 0 else identity(call, input)


def alpha_dropout(call: Call, input: Any, p: float = 0.5, training: bool = False,
                  inplace: bool = False) -> Lowered | None:  # fmt: skip
    """The same for dropouts that do nothing unless they are asked to."""
    return dropout(call, input, p, training)


def torch_dropout(call: Call, input: Any, p: float, train: bool) -> Lowered | None:
    """torch.dropout, whose arguments have names of their own."""
    return dropout(call, input, p, train)


def to(call: Call, input: Any, dtype: Any = torch.float32, *,
       memory_format: Any = None) -> Lowered | None:  # fmt: skip
    """Nothing, where neither dtype nor device changes."""
    return identity(call, input) if dtype is torch.float32 else None


def add(call: Call, input: Any, other: Any, *, alpha: Any = 1) -> Lowered | None:
    """The sum of two values of the same shape, or of a value and the 0 that sum() begins with."""
    if alpha != 1:
        return None
    for value, zero in ((input, other), (other, input)):
        if type(zero) in (int, float) and zero == 0:
            return identity(call, value)
    if call.shapes(input) is None or call.shapes(input) != call.shapes(other):
        return None

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Add, x=x[0], residual=x[1], activation=Activation())

    return Lowered((input, other), emit)


def mul(call: Call, input: Any, other: Any) -> Lowered | None:
    """An image times one number for each of its channels, tokens times a parameter, or equals."""
    if (scaled := factors(call, input, other)) is not None:
        return scaled
    for x, by in ((input, other), (other, input)):
        shapes, gates = call.shapes(x), call.shapes(by)
        if shapes is None or gates is None or len(shapes[0]) not in (3, 4, 5):
            continue
        if all(g == (*s[:2], *(1 for _ in s[2:])) for s, g in zip(shapes, gates, strict=True)):
            return Lowered((x, by), lambda b, v: b.add(Scale, x=v[0], by=v[1],
                           activation=Activation()), "image", "image")  # fmt: skip
    shapes = call.shapes(input)
    if shapes is None or shapes != call.shapes(other) or len(shapes[0]) < 2:
        return None
    return Lowered((input, other), lambda b, v: b.add(Multiply, x=v[0], y=v[1]))


def flatten(call: Call, input: Any, start_dim: int = 0, end_dim: int = -1) -> Lowered | None:
    """[N, ...] -> [N, features]"""
    rank = call.rank(input)
    if start_dim != 1 or end_dim not in (-1, rank - 1) or not 2 <= rank <= 5:
        return None
    if rank == 2:
        return identity(call, input)
    return Lowered((input,), lambda b, x: b.add(Flatten, x=x[0]), "image", "tokens")


def view(call: Call, input: Any, *shape: Any) -> Lowered | None:
    """A flatten(1) written as view(N, C), where -1 or a size read from x stands for N."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    before, after = call.shapes(input), call.shapes(call.node)
    if before is None or after is None or len(sizes) != 2:
        return None
    if type(sizes[0]) is int and sizes[0] != -1:
        return None  # a number of images that the forward insists on
    flat = [(s[0], torch.Size(s[1:]).numel()) for s in before]
    return flatten(call, input, 1) if flat == list(after) else None


def getitem(call: Call, input: Any, index: Any) -> Lowered | None:
    """Every so many pixels, or channels that follow each other."""
    return strided(call, input, index) or channel_slice(call, input, index)


def _flatten_module(call: Call, m: Any, input: Any) -> Lowered | None:
    return flatten(call, input, m.start_dim, m.end_dim)


def _free_module(call: Call, m: nn.Module, input: Any) -> Lowered | None:
    return None if m.training else identity(call, input)


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
            nn.FeatureAlphaDropout, nn.Identity)  # fmt: skip
PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
        nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # fmt: skip
MODULES: dict[type[nn.Module], Pattern] = {
    SparseLinear: linear,
    nn.Linear: dense_linear,
    SparseConv1d: sparse_conv,
    SparseConv2d: sparse_conv,
    SparseConv3d: sparse_conv,
    nn.Conv1d: conv,
    nn.Conv2d: conv,
    nn.Conv3d: conv,
    nn.BatchNorm1d: norm,
    nn.BatchNorm2d: norm,
    nn.BatchNorm3d: norm,
    nn.PReLU: prelu,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.MaxPool1d: pool_module(1, "max"),
    nn.MaxPool2d: pool_module(2, "max"),
    nn.MaxPool3d: pool_module(3, "max"),
    nn.AvgPool1d: pool_module(1, "avg"),
    nn.AvgPool2d: pool_module(2, "avg"),
    nn.AvgPool3d: pool_module(3, "avg"),
    nn.AdaptiveAvgPool1d: mean_module(1),
    nn.AdaptiveAvgPool2d: mean_module(2),
    nn.AdaptiveAvgPool3d: mean_module(3),
    nn.ChannelShuffle: shuffle_module,
    nn.Upsample: upsample_module,
    nn.UpsamplingNearest2d: upsample_module,
    nn.Flatten: _flatten_module,
    **dict.fromkeys(PADS, pad_module),
    **dict.fromkeys(DROPOUTS, _free_module),
    **ACTIVATIONS,
}
"""Exact type of a module -> pattern(call, module, input)."""

FUNCTIONS: dict[Callable[..., Any], Pattern] = {
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.mul: mul,
    operator.imul: mul,
    torch.mul: mul,
    F.prelu: prelu_function,
    torch.prelu: prelu_function,
    F.max_pool1d: pool(1, "max"),
    F.max_pool2d: pool(2, "max"),
    F.max_pool3d: pool(3, "max"),
    torch.max_pool1d: pool(1, "max"),
    torch.max_pool2d: pool(2, "max"),
    torch.max_pool3d: pool(3, "max"),
    F.avg_pool1d: pool(1, "avg"),
    F.avg_pool2d: pool(2, "avg"),
    F.avg_pool3d: pool(3, "avg"),
    F.adaptive_avg_pool1d: adaptive_mean(1),
    F.adaptive_avg_pool2d: adaptive_mean(2),
    F.adaptive_avg_pool3d: adaptive_mean(3),
    torch.mean: mean,
    torch.flatten: flatten,
    torch.reshape: view,
    torch.cat: cat,
    torch.concat: cat,
    torch.narrow: narrow,
    F.channel_shuffle: channel_shuffle,
    F.interpolate: upsample,
    F.dropout: dropout,
    F.dropout1d: dropout,
    F.dropout2d: dropout,
    F.dropout3d: dropout,
    F.alpha_dropout: alpha_dropout,
    F.feature_alpha_dropout: alpha_dropout,
    torch.dropout: torch_dropout,
    torch.clone: identity,
    F.pad: pad,
    operator.getitem: getitem,
    attend: attention,
    rotate: rotary,
    F.layer_norm: norm_function(root=False),
    F.rms_norm: norm_function(root=True),
    torch.permute: permute,
    **ACTIVATION_FUNCTIONS,
}
"""Function -> pattern(call, *arguments)."""

METHODS: dict[str, Pattern] = {
    "add": add,
    "add_": add,
    "mul": mul,
    "mul_": mul,
    "mean": mean,
    "flatten": flatten,
    "narrow": narrow,
    "view": view,
    "reshape": view,
    "permute": permute,
    "contiguous": identity,
    "clone": identity,
    "detach": identity,
    "float": identity,
    "to": to,
    **ACTIVATION_METHODS,
}
"""Method of a tensor -> pattern(call, tensor, *arguments)."""
