"""Programs written by hand: their steps, inputs and weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune import backends
from sparseprune.formats import Csr as Packed
from sparseprune.program.steps import (
    Activation,
    Adaptive,
    Add,
    Cat,
    Channels,
    Csr,
    Depthwise,
    Flatten,
    Input,
    Mean,
    Output,
    Pool,
    Scale,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.text import to_text

Case = tuple[list[Step], list[Tensor], list[Tensor]]
NOTHING = Activation()
RELU = Activation("clamp", 0.0)


def windows(dims: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Window:
    def triple(value: int, missing: int = 1) -> tuple[int, int, int]:
        return (*(missing,) * (3 - dims), *(value,) * dims)  # type: ignore[return-value]

    pads = triple(padding, 0)
    return Window(triple(kernel), triple(stride), pads, pads, triple(dilation))


def tokens_program() -> tuple[list[Step], list[Tensor]]:
    weight = torch.randn(5, 6)
    packed = Packed("rows").pack(weight)
    steps = [Input(0, "tokens", 6, 0), Csr(1, 0, -1, 0, 5, 6, 0, 1, 0, Window(), RELU), Output(1)]
    return steps, list(packed.packed())


def whole_program() -> Case:
    """Every kind of step."""
    packed = Packed().pack(torch.randn(8, 27))
    pool, one = windows(2, 3, 2, 1), Window()
    steps = [
        Input(0, "image", 3, 2),
        Csr(1, 0, -1, 0, 8, 27, packed.block, 1, 1, windows(2, 3, 1, 1), Activation("gelu")),
        Depthwise(2, 1, 1, 5, 8, 1, 1, one, Activation("leaky", 0.1)),
        Pool(3, 2, "max", 0, 1, pool),
        Mean(4, 3),
        Scale(5, 3, 4, Activation("sigmoid")),
        Add(6, 5, 3, NOTHING),
        Cat(7, 6, 5),
        Adaptive(8, 7, (1, 3, 5)),
        Channels(9, 8, 2, 3, 11),
        Upsample(10, 9, (1, 3, 2)),
        Flatten(11, 10),
        Output(11),
        Output(2),
        Output(0),
    ]
    weights = [*packed.packed(), torch.randn(8), torch.randn(8), torch.randn(8)]
    return steps, [torch.randn(2, 3, 7, 6)], weights


def classifier(batch: int, size: int = 12) -> Case:
    """Images of two inputs, a residual, a classifier that adds tokens; four outputs."""
    shapes = (16, 27), (16, 144), (24, 16), (24, 24)
    first, second, third, last = (Packed().pack(torch.randn(n) / n[1] ** 0.5) for n in shapes)
    same, block = windows(2, 3, 1, 1), first.block
    steps = [
        Input(0, "image", 3, 2),
        Input(1, "tokens", 24, 0),
        Input(2, "image", 16, 2),
        Csr(3, 0, 2, 0, 16, 27, block, 1, 0, same, RELU),
        Csr(4, 3, 3, 4, 16, 144, second.block, 1, 0, same, Activation("silu")),
        Output(4),
        Pool(5, 4, "max", 0, 1, windows(2, 2, 2, 0)),
        Mean(6, 5),
        Flatten(7, 6),
        Csr(8, 7, 1, 8, 24, 16, third.block, 1, 0, Window(), RELU),
        Output(8),
        Csr(9, 8, 8, 12, 24, 24, last.block, 1, 0, Window(), NOTHING),
        Output(9),
        Output(7),
    ]
    inputs = [(batch, 3, size, size), (batch, 24), (batch, 16, size, size)]
    weights = [t for p in (first, second, third, last) for t in p.packed()]
    return steps, [torch.randn(shape) for shape in inputs], weights


def run_everywhere(
    steps: list[Step], inputs: list[Tensor], weights: list[Tensor]
) -> list[list[Tensor]]:
    """The outputs of every backend."""
    found = []
    for backend in backends.available():
        with backends.only(backend):
            namespace = backends.choose(torch.device("cpu")).namespace
            op = getattr(torch.ops, namespace).run
            found.append(op(inputs, weights, to_text(steps)))
    return found
