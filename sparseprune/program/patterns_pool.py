"""Poolings and means over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.steps import Adaptive, Flatten, Mean, Pool, Triple, Window

Pattern: TypeAlias = Callable[..., "Lowered | None"]


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


def pool_module(dims: int, kind: str) -> Pattern:
    """The pattern of a pooling layer."""
    names = ["kernel_size", "stride", "padding", "ceil_mode"]
    names += ["dilation", "return_indices"] if kind == "max" else ["count_include_pad"]
    pattern = pool(dims, kind)

    def of_module(call: Call, m: nn.Module, input: Any) -> Lowered | None:
        divisor = getattr(m, "divisor_override", None)
        if divisor is not None:
            return None
        return pattern(call, input, **{name: getattr(m, name) for name in names})

    return of_module


def mean_module(dims: int) -> Pattern:
    """The pattern of a layer of adaptive averages."""
    return lambda call, m, input: adaptive_mean(dims)(call, input, m.output_size)
