"""The op ``csr_conv``: a program of one convolution, with a gradient.

It is ``run`` with an input, a csr step and an output; who needs no gradient calls ``run`` itself.
The gradient is that of the dense convolution with the unpacked weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv3d_input

from sparseprune.ops.products import clamp_grad
from sparseprune.ops.registration import register
from sparseprune.ops.run import parse
from sparseprune.program.steps import Csr, Input, Output, Window

SCHEMA = (
    "(Tensor x, Tensor values, Tensor columns, Tensor counts, Tensor starts, Tensor? bias, "
    "str program) -> Tensor"
)


def _step(program: str, bias: Tensor | None) -> Csr:
    """The one convolution of a program."""
    steps = parse(program)
    step = steps[1] if len(steps) == 3 else None
    torch._check(
        isinstance(steps[0], Input)
        and steps[0].kind == "image"
        and isinstance(step, Csr)
        and isinstance(steps[2], Output)
        and (step.residual, step.tensors, step.activation.kind) == (-1, 0, "clamp")
        and step.has_bias == (bias is not None),
        lambda: (
            f"csr_conv: program must be one convolution, {'without' if bias is None else 'with'} "
            f"bias, got {program!r}; use the op run"
        ),
    )
    return step  # type: ignore[return-value]


def _sides(window: Window) -> list[int]:
    """The padding as torch.nn.functional.pad takes it."""
    return [side for i in (2, 1, 0) for side in (window.before[i], window.after[i])]


def _unpadded(grad: Tensor, sizes: Sequence[int], window: Window) -> Tensor:
    """The gradient of an image [N, C, *sizes] from that of the padded image."""
    if window.mode == "zeros":
        return F.pad(grad, [-side for side in _sides(window)])
    for i, size in enumerate(sizes):
        before, after = window.before[i], window.after[i]
        if before or after:
            # Every padded pixel is a copy of this one.
            pixels = torch.arange(size, dtype=torch.float64, device=grad.device)[None, None]
            copied = F.pad(pixels, (before, after), mode=window.mode).view(-1).long()
            shape = (*grad.shape[: 2 + i], size, *grad.shape[3 + i :])
            grad = grad.new_zeros(shape).index_add(2 + i, copied, grad)
    return grad


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *packed, bias, program = inputs
    step = _step(program, bias)
    ctx.low = None if step.activation.low == -math.inf else step.activation.low
    ctx.high = None if step.activation.high == math.inf else step.activation.high
    ctx.clamped = ctx.low is not None or ctx.high is not None
    ctx.save_for_backward(*packed, *((output,) if ctx.clamped else ()))
    ctx.step, ctx.shape = step, x.shape


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    step, window, shape = ctx.step, ctx.step.window, ctx.shape
    packed = ctx.saved_tensors[:4]
    if ctx.clamped:
        grad = clamp_grad(grad, ctx.saved_tensors[4], ctx.low, ctx.high)
    grad_bias = grad.flatten(2).sum((0, 2)) if step.has_bias else None
    missing = (1,) * (5 - len(shape))
    sizes = (*missing, *shape[2:])
    padded = [size + window.before[i] + window.after[i] for i, size in enumerate(sizes)]
    weight = torch.ops.sparseprune.csr_unpack(*packed, step.rows, step.cols, step.block)
    grad = conv3d_input(
        (*shape[:2], *padded),
        weight.view(step.rows, -1, *window.kernel),
        grad.reshape(*grad.shape[:2], *missing, *grad.shape[2:]),
        window.stride,
        0,
        window.dilation,
        step.groups,
    )
    return _unpadded(grad, sizes, window).reshape(shape), None, None, None, None, grad_bias, None


def _register(namespace: str) -> None:
    run = getattr(torch.ops, namespace).run

    def compute(
        x: Tensor,
        values: Tensor,
        columns: Tensor,
        counts: Tensor,
        starts: Tensor,
        bias: Tensor | None,
        program: str,
    ) -> Tensor:
        _step(program, bias)
        packed = [values, columns, counts, starts]
        y: Tensor = run([x], packed if bias is None else [*packed, bias], program)[0]
        return y

    register(
        (namespace,),
        {"csr_conv": SCHEMA},
        {"csr_conv": (compute, compute)},
        {"csr_conv": (_setup, _backward)},
    )


_register("sparseprune")
_register("sparseprune_reference")
_register("sparseprune_triton")
