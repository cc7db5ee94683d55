"""Images whose channels come last for a while: pixels, layers on them, and back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from program_models import Lambda, assert_close, image, planned, sparsify, words
from program_texts import run_everywhere
from torch import Tensor, nn

from sparseprune.io import load, save
from sparseprune.program.steps import Activation, Depthwise, Input, Output, Step, Window
from sparseprune.program.steps_sequences import Norm, Picture, Pixels
from sparseprune.program.text import to_text

CHANNELS = 6


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("sizes", [(9,), (1, 1), (3, 70), (17, 5), (64, 64)])
def test_there_and_back(batch: int, sizes: tuple[int, ...]) -> None:
    """Each a copy, scaled in between with a residual; an image made of an input as well."""
    dims, factor, shift = len(sizes), torch.randn(CHANNELS), torch.randn(CHANNELS)
    x = torch.randn(batch, CHANNELS, *sizes)
    last = torch.randn(batch, *sizes, CHANNELS)
    steps: list[Step] = [
        Input(0, "image", CHANNELS, dims),
        Input(1, "tokens", CHANNELS, 0),
        Pixels(2, 0, dims),
        Depthwise(3, 2, 1, 0, CHANNELS, 1, 1, Window(), Activation("silu")),
        Picture(4, 3, dims),
        Picture(5, 1, dims),
        Output(2),
        Output(4),
        Output(5),
    ]
    first = x.movedim(1, -1)
    expected = [first, F.silu(first * factor + shift + last).movedim(-1, 1), last.movedim(-1, 1)]
    for outputs in run_everywhere(steps, [x, last], [factor, shift]):
        for got, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)


class ChannelNorm(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt's (Liu et al., 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.act = nn.LayerNorm(channels, eps=1e-6), nn.GELU()
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(self.act(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ChannelNorm(8), Block(8), Block(8), ChannelNorm(8),
        nn.Conv2d(8, 12, 2, 2), Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
        nn.LayerNorm(12), nn.Linear(12, 5),
    )  # fmt: skip


BLOCK = "depthwise pixels norm csr csr depthwise picture add"
NORM = "pixels norm picture"


def test_convnext_is_one_program(tmp_path: Path) -> None:
    model, x = sparsify(convnext()), torch.randn(2, 3, 40, 32)
    sizes = {(n, *s): torch.randn(n, 3, *s) for n, s in ((1, (40, 32)), (5, (37, 64)))}
    expected = {size: model(y) for size, y in sizes.items()}
    planned(model, x)
    assert words(model) == [f"csr {NORM} {BLOCK} {BLOCK} {NORM} csr {BLOCK} mean flatten norm csr"]
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file", convnext())
    with torch.no_grad():
        for size, y in sizes.items():
            assert_close(model(y), expected[size])
            assert torch.equal(loaded(y), model(y))


def test_norms_as_functions() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.b(F.layer_norm(m.a(x), (CHANNELS,), m.n.weight, m.n.bias, 1e-3))
        return m.c(F.rms_norm(x, (CHANNELS,), m.n.weight) * m.n.bias)

    layers = {name: nn.Linear(CHANNELS, CHANNELS) for name in "abc"}
    norm = nn.LayerNorm(CHANNELS)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    model, x = sparsify(Lambda(forward, **layers, n=norm)), torch.randn(3, 4, CHANNELS)
    expected = model(x)
    planned(model, x)
    assert words(model) == ["csr norm csr norm depthwise csr"]
    assert_close(model(x), expected)


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (0, 3, 2, 1), (1, 2, 3, 0)])
def test_other_orders_stay(order: tuple[int, ...]) -> None:
    """Whatever else is turned is left to torch."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(m.a(x)).permute(order) * 2

    layers = {name: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for name in "ab"}
    model, x = sparsify(Lambda(forward, **layers)), image()
    expected = model(x)
    planned(model, x)
    assert words(model) == ["csr csr"]
    assert_close(model(x), expected)


def test_pixels_shared_out_change_nothing() -> None:
    """Image by image, or all at once; pixels are an output as well."""
    steps: list[Step] = [
        Input(0, "image", CHANNELS, 2),
        Pixels(1, 0, 2),
        Norm(2, 1, 0, CHANNELS, 0, 1, 1e-5),
        Picture(3, 2, 2),
        Output(2),
        Output(3),
    ]
    before = torch.get_num_threads()
    try:
        for batch, height, width in itertools.product((1, 3, 7), (5, 20), (7, 31)):
            x, outputs = torch.randn(batch, CHANNELS, height, width), []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                outputs.append(torch.ops.sparseprune.run([x], [torch.ones(6)], to_text(steps)))
            expected = F.layer_norm(x.movedim(1, -1), (CHANNELS,))
            torch.testing.assert_close(outputs[0][0], expected, rtol=2e-6, atol=2e-6)
            for pixels, picture in outputs:
                assert torch.equal(pixels, outputs[0][0])
                assert torch.equal(picture, pixels.movedim(-1, 1))
    finally:
        torch.set_num_threads(before)
