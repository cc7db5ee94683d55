"""The op ``run``: a whole program in one call. Schema, fake kernel and reference.

A pruned weight contributes nothing, as in the csr ops. There is no gradient: whoever needs one
runs the layers one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from sparseprune.formats.csr import bound_rows
from sparseprune.ops.csr_checks import check_packed
from sparseprune.ops.registration import register
from sparseprune.ops.run_reference import FEW, KERNELS, Weights, enter, tensors
from sparseprune.program.checks import check_program
from sparseprune.program.shapes import output_shapes
from sparseprune.program.steps import Csr, Depthwise, Input, Linear, OnTokens, Output, Step
from sparseprune.program.steps_sequences import Norm
from sparseprune.program.text import from_text

SCHEMA = "(Tensor[] inputs, Tensor[] weights, str program) -> Tensor[]"


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
            check(step, inputs[0], *tensors(step, weights))  # type: ignore[arg-type]
    return shapes


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


def _check_norm(step: Norm, x: Tensor, weight: Weights, bias: Tensor | None) -> None:
    _check_plain(step, x, weight, bias, step.channels, 1)


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


CHECKS: dict[type[Step], Callable[[Any, Tensor, Weights, Tensor | None], None]] = {
    Csr: _check_csr,
    **dict.fromkeys(FEW, _check_few),
    Linear: _check_linear,
    Depthwise: _check_depthwise,
    Norm: _check_norm,
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
            values[step.out] = enter(step, next(given))
        elif isinstance(step, Output):
            y = values[step.x].reshape(next(shapes)).clone(memory_format=torch.contiguous_format)
        else:
            values[step.out] = KERNELS[type(step)](step, values, weights)  # type: ignore[attr-defined]
        yield y


def _run_fake(inputs: Weights, weights: Weights, program: str) -> list[Tensor]:
    return [inputs[0].new_empty(shape) for shape in check(inputs, weights, parse(program))]


register(
    ("sparseprune", "sparseprune_reference", "sparseprune_triton"),
    {"run": SCHEMA},
    {"run": (run_reference, _run_fake)},
    autocast=("run",),
)
