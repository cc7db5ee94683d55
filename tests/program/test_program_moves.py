"""Values that lie in others: any order of steps that join, choose, deal and repeat."""

from __future__ import annotations

import random

import pytest
import torch
from program_texts import NOTHING, windows
from torch import Tensor

from sparseprune.formats import Csr as Packed
from sparseprune.program.steps import (
    Activation,
    Add,
    Cat,
    Channels,
    Csr,
    Depthwise,
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

MOST = 48
"""Channels."""


class Made:
    """A program of steps drawn at random, its values' channels and sizes, and its weights."""

    def __init__(self, seed: int, length: int = 14) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.steps: list[Step] = [Input(0, "image", 4, 2), Input(1, "image", 6, 2)]
        self.values = [(4, 1), (6, 1)]  # channels, times larger than the inputs
        self.weights: list[Tensor] = []
        while len(self.steps) < length:
            x = self.random.randrange(len(self.values))
            getattr(self, self.random.choice(KINDS))(x, len(self.values), *self.values[x])
        outputs = self.random.sample(range(len(self.values)), 3)
        self.steps += [Output(x) for x in (*outputs, len(self.values) - 1)]

    def take(self, step: Step, channels: int, times: int) -> None:
        self.steps.append(step)
        self.values.append((channels, times))

    def alike(self, channels: int | None, times: int) -> int:
        """A value of these sizes, or -1."""
        found = [i for i, v in enumerate(self.values) if v[1] == times and channels in (None, v[0])]
        return self.random.choice(found) if found else -1

    def act(self) -> Activation:
        return self.random.choice([NOTHING, Activation("clamp", 0.0), Activation("silu")])

    def add(self, x: int, out: int, channels: int, times: int) -> None:
        self.take(Add(out, x, self.alike(channels, times), self.act()), channels, times)

    def cat(self, x: int, out: int, channels: int, times: int) -> None:
        y = self.alike(None, times)
        if channels + self.values[y][0] <= MOST:
            self.take(Cat(out, x, y), channels + self.values[y][0], times)

    def channels(self, x: int, out: int, channels: int, times: int) -> None:
        groups = self.random.choice([g for g in (1, 1, 2, 3) if channels % g == 0])
        begin = self.random.randrange(channels)
        count = self.random.randint(1, channels - begin)
        self.take(Channels(out, x, groups, begin, count), count, times)

    def upsample(self, x: int, out: int, channels: int, times: int) -> None:
        if times < 4:
            self.take(Upsample(out, x, (1, 2, 2)), channels, 2 * times)

    def pool(self, x: int, out: int, channels: int, times: int) -> None:
        self.take(Pool(out, x, "max", 0, 1, windows(2, 3, 1, 1)), channels, times)

    def scale(self, x: int, out: int, channels: int, times: int) -> None:
        self.take(Mean(out, x), channels, 0)
        self.take(Scale(out + 1, x, out, self.act()), channels, times)

    def depthwise(self, x: int, out: int, channels: int, times: int) -> None:
        residual = self.random.choice([-1, self.alike(channels, times)])
        step = Depthwise(out, x, residual, len(self.weights), channels, 1, 1,
                         windows(2, 3, 1, 1), self.act())  # fmt: skip
        self.weights += [torch.randn(channels, 9) / 3, torch.randn(channels)]
        self.take(step, channels, times)

    def prepared(self, x: int, out: int, channels: int, times: int) -> None:
        """What one or two convolutions may do while they pack; now and then others read it too."""
        act = self.random.choice(
            [NOTHING, Activation("clamp", 0.0), Activation("clamp", -1.0, 1.0)]
        )
        if self.random.random() < 0.5:
            self.take(Mean(out, x), channels, 0)
            out += 1
            self.take(Scale(out, x, out - 1, act), channels, times)
        else:
            has_bias = self.random.randint(0, 1)
            step = Depthwise(out, x, -1, len(self.weights), channels, 1, has_bias, Window(), act)
            self.weights += [torch.randn(channels, 1), torch.randn(channels)][: 1 + has_bias]
            self.take(step, channels, times)
        for _ in range(self.random.randint(1, 2)):
            self.csr(out, len(self.values), channels, times, self.random.choice([1, 1, 1, 3]))

    def csr(self, x: int, out: int, channels: int, times: int, kernel: int = 0) -> None:
        rows, kernel = self.random.choice([4, 6, 8, channels]), kernel or self.random.choice([1, 3])
        packed = Packed(self.random.choice(["rows", "groups", "sorted"])).pack(
            torch.randn(rows, channels * kernel**2).clamp(min=0.5) - 0.5
        )
        window = windows(2, 3, 1, 1) if kernel == 3 else Window()
        residual = self.random.choice([-1, self.alike(rows, times)])
        self.take(
            Csr(out, x, residual, len(self.weights), rows, channels * kernel**2, packed.block, 1, 0,
                window, self.act()), rows, times
        )  # fmt: skip
        self.weights += packed.packed()


KINDS = ("add", "cat", "cat", "channels", "channels", "upsample", "pool", "scale", "depthwise",
         "csr", "prepared", "prepared")  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    made = Made(seed)
    text = to_text(made.steps)
    for batch, size in ((1, (7, 6)), (2, (5, 9)), (3, (4, 4))):
        inputs = [torch.randn(batch, channels, *size) for channels in (4, 6)]
        expected = torch.ops.sparseprune_reference.run(inputs, made.weights, text)
        for threads in (1, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                found = torch.ops.sparseprune.run(inputs, made.weights, text)
            finally:
                torch.set_num_threads(before)
            for got, wanted in zip(found, expected, strict=True):
                scale = max(1.0, wanted.abs().max().item())
                torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=2e-5)


def test_what_is_joined_takes_no_memory_of_its_own() -> None:
    """Parts are made where they will lie, and lie there until the last reader is done."""
    steps: list[Step] = [Input(0, "image", 8, 2)]
    for layer in range(6):  # each reads all before it, as in a DenseNet
        steps += [
            Add(2 * layer + 1, 2 * layer, -1, Activation("silu")),
            Cat(2 * layer + 2, 2 * layer, 2 * layer + 1),
        ]
    last = 2 * 6
    x = torch.randn(1, 8, 4, 5)
    text = to_text([*steps, Output(last)])
    (got,) = torch.ops.sparseprune.run([x], [], text)
    (expected,) = torch.ops.sparseprune_reference.run([x], [], text)
    torch.testing.assert_close(got, expected)
    times = torch.ops.sparseprune.run_times([x], [], text)
    cats = [t for t, step in zip(times.tolist(), [*steps, Output(last)], strict=True)
            if isinstance(step, Cat)]  # fmt: skip
    assert cats == [0.0] * 6


@pytest.mark.parametrize("layout", ["rows", "groups", "sorted"])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (14, 14)])
def test_scales_of_channels_are_taken_along(layout: str, size: tuple[int, int]) -> None:
    """By 1x1 convolutions: no step of their own is left, whatever they divide by or meet."""
    packed = Packed(layout).pack(torch.randn(12, 20).clamp(min=0.3) - 0.3)
    x = torch.randn(2, 20, *size)
    x[0, 3], x[1, 4, 0, 0] = torch.inf, torch.nan
    gates = torch.randn(2, 20, 1, 1)
    gates[1, 5] = torch.inf
    packed_relu = [torch.randn(20, 1), torch.randn(20), *packed.packed()]
    one, relu = Window(), Activation("clamp", 0.0)
    conv = lambda out, x, tensors: Csr(out, x, -1, tensors, 12, 20, packed.block, 1, 0, one, relu)  # noqa: E731
    steps = [
        Input(0, "image", 20, 2),
        Input(1, "image", 20, 2),
        Scale(2, 0, 1, NOTHING),
        conv(3, 2, 2),
        Depthwise(4, 0, -1, 0, 20, 1, 1, one, relu),
        conv(5, 4, 2),
        Output(3),
        Output(5),
    ]
    found = torch.ops.sparseprune.run([x, gates], packed_relu, to_text(steps))
    expected = torch.ops.sparseprune_reference.run([x, gates], packed_relu, to_text(steps))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    times = torch.ops.sparseprune.run_times([x, gates], packed_relu, to_text(steps))
    assert times[2] == times[4] == 0
