"""The op ``run``: a whole program in one call. Schema, fake kernel and reference.

A pruned weight contributes nothing, as in the csr ops. There is no gradient: whoever needs one
runs the layers one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats.csr import CsrWeight, bound_rows, entries
from sparseprune.ops.bitmask import BITMASK
from sparseprune.ops.csr_checks import check_packed
from sparseprune.ops.linear import LinearFormat
from sparseprune.ops.products import multiply
from sparseprune.ops.registration import register
from sparseprune.ops.sell import SELL
from sparseprune.program.checks import check_program
from sparseprune.program.shapes import output_shapes
from sparseprune.program.steps import (
    Activation,
    Adaptive,
    Add,
    Bitmask,
    Cat,
    Csr,
    Depthwise,
    Flatten,
    Input,
    Linear,
    Mean,
    OnTokens,
    Output,
    Pool,
    Scale,
    Sell,
    Step,
    Window,
    from_text,
)

SCHEMA = "(Tensor[] inputs, Tensor[] weights, str program) -> Tensor[]"

Weights = Sequence[Tensor]
Layer: TypeAlias = Csr | OnTokens | Depthwise
"""A step with weights."""


@lru_cache(maxsize=256)
def parse(program: str) -> tuple[Step, ...]:
    """The steps of a text, checked.

    Raises:
        ValueError: a text that is not a program.
    """
    steps = from_text(program)
    check_program(steps)
    return tuple(steps)


def check(inputs: Weights, weights: Weights, steps: Sequence[Step]) -> list[tuple[Any, ...]]:
    """What compiled kernels demand as well; gives the shapes of the outputs."""
    for number, x in enumerate(inputs):
        torch._check(
            x.dtype == torch.float32 and x.device == inputs[0].device,
            lambda number=number, x=x: (  # type: ignore[misc]
                f"run: inputs[{number}] must be float32 on {inputs[0].device}, got {x.dtype} on "
                f"{x.device}; convert it with .float() or .to()"
            ),
        )
    shapes = output_shapes(steps, [x.shape for x in inputs])
    for step in steps:
        if (check := CHECKS.get(type(step))) is not None:
            check(step, inputs[0], *_tensors(step, weights))  # type: ignore[arg-type]
    return shapes


def _tensors(step: Layer, weights: Weights) -> tuple[Weights, Tensor | None]:
    """The tensors of a step, and its bias."""
    end = step.tensors + TENSORS[type(step)]
    torch._check(
        end + step.has_bias <= len(weights),
        lambda: (
            f"run: weights must be at least {end + step.has_bias} tensors, got {len(weights)}; "
            "pass Program.tensors()"
        ),
    )
    return weights[step.tensors : end], weights[end] if step.has_bias else None


def _check_csr(step: Csr, x: Tensor, packed: Weights, bias: Tensor | None) -> None:
    values, columns, counts, starts = packed
    check_packed("run", x, values, columns, counts, starts, bias,
                 step.rows, step.cols, step.block)  # fmt: skip
    bound = bound_rows(counts)
    torch._check(
        step.groups == 1 or step.rows // step.groups % bound == 0,
        lambda: (
            f"run: outputs per group must divide by {bound} in this layout, "
            f'got {step.rows // step.groups}; pack with the layout "rows"'
        ),
    )


def _check_few(step: OnTokens, x: Tensor, packed: Weights, bias: Tensor | None) -> None:
    torch._check(
        x.dtype == torch.float32, lambda: f"run: x must be float32, got {x.dtype}; use .float()"
    )
    FEW[type(step)].check_packed("run", x, packed, bias, step.rows, step.cols)


def _check_linear(step: Linear, x: Tensor, weight: Weights, bias: Tensor | None) -> None:
    _check_plain(step, x, weight, bias, step.rows, step.cols)


def _check_depthwise(step: Depthwise, x: Tensor, weight: Weights, bias: Tensor | None) -> None:
    rows, taps = step.channels * step.multiplier, prod(step.window.kernel)
    _check_plain(step, x, weight, bias, rows, taps)


def _check_plain(
    step: Step, x: Tensor, weight: Weights, bias: Tensor | None, rows: int, cols: int
) -> None:
    for name, tensor, size in (("weight", weight[0], rows * cols), ("bias", bias, rows)):
        if tensor is not None:
            torch._check(
                tensor.dtype == torch.float32
                and tensor.device == x.device
                and tensor.numel() == size
                and tensor.is_contiguous(),
                lambda name=name, tensor=tensor, size=size: (  # type: ignore[misc]
                    f"run: {step.word} {name} must be {size} contiguous float32 on {x.device}, got "
                    f"{tensor.numel()} {tensor.dtype} on {tensor.device}; lower the model again"
                ),
            )


FEW: dict[type[Step], LinearFormat] = {Bitmask: BITMASK, Sell: SELL}
"""Step on tokens -> the format of its weight, for few of them."""
TENSORS: dict[type[Step], int] = {
    Csr: len(CsrWeight.parts),
    **{step: len(packed.parts) for step, packed in FEW.items()},
    Linear: 1,
    Depthwise: 1,
}
"""Step -> tensors that it takes before its bias."""
CHECKS: dict[type[Step], Callable[[Any, Tensor, Weights, Tensor | None], None]] = {
    Csr: _check_csr,
    **dict.fromkeys(FEW, _check_few),
    Linear: _check_linear,
    Depthwise: _check_depthwise,
}
"""Step -> what demands that its tensors fit it."""


def run_reference(inputs: Weights, weights: Weights, program: str) -> list[Tensor]:
    """The steps one after the other."""
    return [y for y in one_by_one(inputs, weights, program) if y is not None]


def one_by_one(inputs: Weights, weights: Weights, program: str) -> Iterator[Tensor | None]:
    """Computes a step, checked before, each time it is asked; gives the output if it is one."""
    steps = parse(program)
    return _one_by_one(inputs, weights, steps, iter(check(inputs, weights, steps)))


def _one_by_one(
    inputs: Weights, weights: Weights, steps: Sequence[Step], shapes: Iterator[tuple[Any, ...]]
) -> Iterator[Tensor | None]:
    given = iter(inputs)
    values: dict[int, Tensor] = {}
    for step in steps:
        y = None
        if isinstance(step, Input):
            values[step.out] = _enter(step, next(given))
        elif isinstance(step, Output):
            y = values[step.x].reshape(next(shapes)).clone(memory_format=torch.contiguous_format)
        else:
            values[step.out] = KERNELS[type(step)](step, values, weights)  # type: ignore[attr-defined]
        yield y


def _enter(step: Input, x: Tensor) -> Tensor:
    """In between, images are [N, C, depth, height, width] and tokens [T, C]."""
    if step.kind == "image":
        return x.reshape(*x.shape[:2], *(1,) * (3 - step.dims), *x.shape[2:])
    return x.reshape(x.shape[:-1].numel(), step.channels)


def _pad(x: Tensor, window: Window) -> Tensor:
    """The image with its padding around it."""
    sides = [side for i in (2, 1, 0) for side in (window.before[i], window.after[i])]
    if not any(sides):
        return x
    plain = window.mode == "zeros" or x.shape[0] == 0  # torch reflects no empty batch
    return F.pad(x, sides, mode="constant" if plain else window.mode)


def _patches(x: Tensor, window: Window) -> Tensor:
    """The windows of a padded image as [N, *sizes, C, *kernel]."""
    for i in range(3):
        reach = window.dilation[i] * (window.kernel[i] - 1) + 1
        x = x.unfold(2 + i, reach, window.stride[i])[..., :: window.dilation[i]]
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7)


def _csr(step: Csr, values: dict[int, Tensor], weights: Weights) -> Tensor:
    """W x over the nonzeros of W alone."""
    (stored, columns, counts, starts), bias = _tensors(step, weights)
    row, column = entries(columns, counts, starts, step.rows, step.cols, step.block)
    column = column + row // max(1, step.rows // step.groups) * step.cols
    x = values[step.x]
    sizes = x.shape[:1]
    if x.dim() == 5:
        x = _patches(_pad(x, step.window), step.window)
        sizes = x.shape[:4]
    y = multiply(x.reshape(sizes.numel(), step.cols * step.groups), stored, row, column, step.rows)
    y = (y if bias is None else y + bias.view(-1)).view(*sizes, step.rows)
    return _finish(y.permute(0, 4, 1, 2, 3) if len(sizes) > 1 else y, step, values)


def _few(step: OnTokens, values: dict[int, Tensor], weights: Weights) -> Tensor:
    """The same in a format for few tokens."""
    packed, bias = _tensors(step, weights)
    y = multiply(values[step.x], *FEW[type(step)].entries(*packed), step.rows)
    return _finish(y if bias is None else y + bias.view(-1), step, values)


def _linear(step: Linear, values: dict[int, Tensor], weights: Weights) -> Tensor:
    (weight,), bias = _tensors(step, weights)
    bias = None if bias is None else bias.view(-1)
    return _finish(F.linear(values[step.x], weight.view(step.rows, step.cols), bias), step, values)


def _depthwise(step: Depthwise, values: dict[int, Tensor], weights: Weights) -> Tensor:
    (weight,), bias = _tensors(step, weights)
    x, window = _pad(values[step.x], step.window), step.window
    weight = weight.view(step.channels * step.multiplier, 1, *window.kernel)
    bias = None if bias is None else bias.view(-1)
    y = F.conv3d(x, weight, bias, window.stride, 0, window.dilation, step.channels)
    return _finish(y, step, values)


def _pool(step: Pool, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x, w = values[step.x], step.window
    if step.kind == "max":
        return F.max_pool3d(x, w.kernel, w.stride, w.before, w.dilation, bool(step.ceil))
    return F.avg_pool3d(x, w.kernel, w.stride, w.before, bool(step.ceil), bool(step.count_padding))


def _adaptive(step: Adaptive, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return F.adaptive_avg_pool3d(values[step.x], tuple(size or None for size in step.size))  # type: ignore[arg-type]


def _add(step: Add, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return _finish(values[step.x], step, values)


def _scale(step: Scale, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return activate(values[step.x] * values[step.by], step.activation)


def _finish(y: Tensor, step: Layer | Add, values: dict[int, Tensor]) -> Tensor:
    if step.residual != -1:
        y = y + values[step.residual]
    return activate(y, step.activation)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every element of x."""
    return ACTIVATE[activation.kind](x, activation)


ACTIVATE: dict[str, Callable[[Tensor, Activation], Tensor]] = {
    "clamp": lambda x, a: x.clamp(a.low, a.high),
    "leaky": lambda x, a: F.leaky_relu(x, a.low),
    "silu": lambda x, a: F.silu(x),
    "gelu": lambda x, a: F.gelu(x),
    "gelu_tanh": lambda x, a: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x, a: F.hardswish(x),
    "hardsigmoid": lambda x, a: F.hardsigmoid(x),
    "sigmoid": lambda x, a: x.sigmoid(),
    "tanh": lambda x, a: x.tanh(),
}
"""Kind of activation -> what it computes."""

KERNELS: dict[type[Step], Callable[[Any, dict[int, Tensor], Weights], Tensor]] = {
    Csr: _csr,
    **dict.fromkeys(FEW, _few),
    Linear: _linear,
    Depthwise: _depthwise,
    Pool: _pool,
    Mean: lambda step, values, weights: values[step.x].mean((2, 3, 4), keepdim=True),
    Adaptive: _adaptive,
    Add: _add,
    Scale: _scale,
    Cat: lambda step, values, weights: torch.cat([values[step.x], values[step.y]], 1),
    Flatten: lambda step, values, weights: values[step.x].flatten(1),
}
"""Step -> what it computes."""


def _run_fake(inputs: Weights, weights: Weights, program: str) -> list[Tensor]:
    return [inputs[0].new_empty(shape) for shape in check(inputs, weights, parse(program))]


register(
    ("sparseprune", "sparseprune_reference"),
    {"run": SCHEMA},
    {"run": (run_reference, _run_fake)},
    autocast=("run",),
)
