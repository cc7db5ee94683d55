"""What a program can compute: module type, function or method -> how it becomes steps.

A pattern takes a :class:`Call` and the arguments as torch names them, and gives a
:class:`Lowered`, or None where these arguments are not supported. To support another op, write
its pattern and add one entry to ``MODULES``, ``FUNCTIONS`` or ``METHODS``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from sparseprune.nn import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear
from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.patterns_act import ACTIVATION_FUNCTIONS, ACTIVATION_METHODS, ACTIVATIONS
from sparseprune.program.patterns_layers import (
    conv,
    dense_linear,
    linear,
    norm,
    pad,
    sparse_conv,
    strided,
)
from sparseprune.program.steps import (
    Activation,
    Adaptive,
    Add,
    Cat,
    Flatten,
    Mean,
    Pool,
    Scale,
    Triple,
    Window,
)

Pattern: TypeAlias = Callable[..., "Lowered | None"]


def identity(call: Call, input: Any, *_: Any, **__: Any) -> Lowered:
    """Nothing."""
    return Lowered((input,), lambda b, x: x[0], free=True)


def dropout(call: Call, input: Any, p: float = 0.5, training: bool = True,
            inplace: bool = False) -> Lowered | None:  # fmt: skip
    """Nothing, in eval mode."""
    return None if training is not False and p != 0 else identity(call, input)


def add(call: Call, input: Any, other: Any, *, alpha: Any = 1) -> Lowered | None:
    """The sum of two values of the same shape."""
    shapes = call.shapes(input)
    if alpha != 1 or shapes is None or shapes != call.shapes(other):
        return None

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Add, x=x[0], residual=x[1], activation=Activation())

    return Lowered((input, other), emit)


def mul(call: Call, input: Any, other: Any) -> Lowered | None:
    """An image times one number for each of its channels."""
    for x, by in ((input, other), (other, input)):
        shapes, gates = call.shapes(x), call.shapes(by)
        if shapes is None or gates is None or len(shapes[0]) not in (3, 4, 5):
            continue
        if all(g == (*s[:2], *(1 for _ in s[2:])) for s, g in zip(shapes, gates, strict=True)):
            return Lowered((x, by), lambda b, v: b.add(Scale, x=v[0], by=v[1],
                           activation=Activation()), "image", "image")  # fmt: skip
    return None


def pool(dims: int, kind: str) -> Pattern:
    """The pattern of a pooling over that many dimensions."""

    def lowered(call: Call, x: Any, sizes: tuple[Any, ...], ceil: Any, counts: Any) -> Any:
        kernel, stride, padding, dilation = sizes
        w = window(dims, kernel, stride or kernel, padding, dilation)
        if w is None or call.rank(x) != dims + 2:
            return None

        def emit(b: Builder, v: list[int]) -> int:
            return b.add(Pool, x=v[0], kind=kind, ceil=int(bool(ceil)),
                         count_padding=int(bool(counts)), window=w)  # fmt: skip

        return Lowered((x,), emit, "image", "image")

    def maximum(call: Call, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
                dilation: Any = 1, ceil_mode: bool = False,
                return_indices: bool = False) -> Any:  # fmt: skip
        sizes = (kernel_size, stride, padding, dilation)
        return None if return_indices else lowered(call, input, sizes, ceil_mode, True)

    def average(call: Call, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
                ceil_mode: bool = False, count_include_pad: bool = True,
                divisor_override: Any = None) -> Any:  # fmt: skip
        sizes = (kernel_size, stride, padding, 1)
        own = divisor_override is not None
        return None if own else lowered(call, input, sizes, ceil_mode, count_include_pad)

    return maximum if kind == "max" else average


def window(dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Window | None:
    """Where a pooling reads; None where a size is not known."""
    sides = triple(dims, padding, 0)
    sizes = [triple(dims, value, 1) for value in (kernel, stride, dilation)]
    if sides is None or None in sizes:
        return None
    return Window(sizes[0], sizes[1], sides, sides, sizes[2])  # type: ignore[arg-type]


def triple(dims: int, value: Any, missing: int) -> Triple | None:
    """(depth, height, width) of an int or tuple of ints; None if it is neither."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    sizes = sizes * dims if len(sizes) == 1 else sizes
    if len(sizes) != dims or not all(type(v) is int for v in sizes):
        return None
    depth, height, width = (missing,) * (3 - dims) + sizes
    return depth, height, width


def adaptive_mean(dims: int) -> Pattern:
    """The pattern of an adaptive average over that many dimensions."""

    def pattern(call: Call, input: Any, output_size: Any) -> Lowered | None:
        given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * dims
        size = triple(dims, tuple(0 if n is None else n for n in given), 1)
        if size is None or 0 in given or call.rank(input) != dims + 2:
            return None

        def emit(b: Builder, x: list[int]) -> int:
            everything = size == (1, 1, 1)
            return b.add(Mean, x=x[0]) if everything else b.add(Adaptive, x=x[0], size=size)

        return Lowered((input,), emit, "image", "image")

    return pattern


def mean(call: Call, input: Any, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    """The mean over all spatial dimensions."""
    rank = call.rank(input)
    dims = (dim,) if isinstance(dim, int) else dim
    if more or dims is None or rank not in (3, 4, 5):
        return None
    if not all(type(d) is int for d in dims) or {d % rank for d in dims} != set(range(2, rank)):
        return None

    def emit(b: Builder, x: list[int]) -> int:
        out = b.add(Mean, x=x[0])
        return out if keepdim else b.add(Flatten, x=out)

    return Lowered((input,), emit, "image", "image" if keepdim else "tokens")


def flatten(call: Call, input: Any, start_dim: int = 0, end_dim: int = -1) -> Lowered | None:
    """[N, ...] -> [N, features]"""
    rank = call.rank(input)
    if start_dim != 1 or end_dim not in (-1, rank - 1) or not 2 <= rank <= 5:
        return None
    if rank == 2:
        return identity(call, input)
    return Lowered((input,), lambda b, x: b.add(Flatten, x=x[0]), "image", "tokens")


def view(call: Call, input: Any, *shape: Any) -> Lowered | None:
    """A flatten(1) written as view(N, -1), where N is taken from a shape, or as view(-1, C)."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    before, after = call.shapes(input), call.shapes(call.node)
    if before is None or after is None or len(sizes) != 2 or -1 not in sizes:
        return None
    if type(sizes[0]) is int and sizes[0] != -1:
        return None  # a number of images that the forward insists on
    flat = [(s[0], torch.Size(s[1:]).numel()) for s in before]
    return flatten(call, input, 1) if flat == list(after) else None


def cat(call: Call, tensors: Any, dim: int = 0) -> Lowered | None:
    """The channels of several images."""
    if not isinstance(tensors, (tuple, list)) or len(tensors) < 2:
        return None
    rank = call.rank(tensors[0])
    if rank not in (3, 4, 5) or type(dim) is not int or dim % rank != 1:
        return None

    def emit(b: Builder, x: list[int]) -> int:
        joined = x[0]
        for value in x[1:]:
            joined = b.add(Cat, x=joined, y=value)
        return joined

    return Lowered(tuple(tensors), emit, "image", "image")


def _pool_module(dims: int, kind: str) -> Pattern:
    names = ["kernel_size", "stride", "padding", "ceil_mode"]
    names += ["dilation", "return_indices"] if kind == "max" else ["count_include_pad"]
    pattern = pool(dims, kind)

    def of_module(call: Call, m: nn.Module, input: Any) -> Lowered | None:
        divisor = getattr(m, "divisor_override", None)
        if divisor is not None:
            return None
        return pattern(call, input, **{name: getattr(m, name) for name in names})

    return of_module


def _flatten_module(call: Call, m: Any, input: Any) -> Lowered | None:
    return flatten(call, input, m.start_dim, m.end_dim)


def _mean_module(dims: int) -> Pattern:
    return lambda call, m, input: adaptive_mean(dims)(call, input, m.output_size)


def _free_module(call: Call, m: nn.Module, input: Any) -> Lowered | None:
    return None if m.training else identity(call, input)


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
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
    nn.MaxPool1d: _pool_module(1, "max"),
    nn.MaxPool2d: _pool_module(2, "max"),
    nn.MaxPool3d: _pool_module(3, "max"),
    nn.AvgPool1d: _pool_module(1, "avg"),
    nn.AvgPool2d: _pool_module(2, "avg"),
    nn.AvgPool3d: _pool_module(3, "avg"),
    nn.AdaptiveAvgPool1d: _mean_module(1),
    nn.AdaptiveAvgPool2d: _mean_module(2),
    nn.AdaptiveAvgPool3d: _mean_module(3),
    nn.Flatten: _flatten_module,
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
    F.dropout: dropout,
    F.pad: pad,
    operator.getitem: strided,
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
    "view": view,
    "reshape": view,
    "contiguous": identity,
    **ACTIVATION_METHODS,
}
"""Method of a tensor -> pattern(call, tensor, *arguments)."""
