"""Activations fused into the layer before them: same outputs, only where nobody else looks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE
from torch import Tensor, nn

from sparseprune import backends, convert
from sparseprune.formats import FORMATS, Format
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.prune import prune


@pytest.mark.parametrize("clamp", [(0.0, None), (0.0, 6.0), (-0.5, 0.25), (None, 0.0)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("backend", backends.available())
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_clamp_is_torchs(
    fmt: Format, backend: str, tokens: int, clamp: tuple[float | None, float | None]
) -> None:
    weight, x, bias = torch.randn(37, 23), torch.randn(tokens, 23), torch.randn(37)
    weight[torch.rand(37, 23) < 0.7] = 0
    x[0, 5] = torch.nan
    with backends.only(backend):
        packed = fmt.pack(weight)
        plain, clamped = packed.linear(x, bias), packed.linear(x, bias, clamp)
    assert plain.isnan().any()
    assert torch.equal(clamped.isnan(), plain.isnan())
    torch.testing.assert_close(clamped, plain.clamp(*clamp), equal_nan=True, rtol=0, atol=0)


class Residual(nn.Module):
    """One activation shared by two places, one output with two readers, one plain pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 8)
        self.head_relu = nn.Hardtanh(-0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_relu(self.stem(x))
        x = self.relu(self.second(self.relu(self.first(x))) + x)
        y = self.head(x.mean((2, 3)))
        return self.head_relu(y) + y


def converted(model: nn.Module, x: Tensor) -> nn.Module:
    prune(model.eval(), 0.6, scope="local")
    expected = model(x)
    fast = convert(model, x, keep_dense="never")
    torch.testing.assert_close(fast(x), expected, **TOLERANCE)
    return fast


def test_only_private_pairs_are_fused() -> None:
    model = Residual()
    fast = converted(model, torch.randn(2, 3, 9, 9))
    assert isinstance(fast, Residual)
    assert fast.stem.clamp == (0.0, 6.0) and isinstance(fast.stem_relu, nn.Identity)
    assert fast.first.clamp == fast.second.clamp == (None, None)  # their ReLU is called twice
    assert fast.head.clamp == (None, None)  # its output is read twice
    assert isinstance(fast.relu, nn.ReLU) and isinstance(fast.head_relu, nn.Hardtanh)
    assert isinstance(model.stem_relu, nn.ReLU6)
    assert [row.name for row in fast.report.rows if "activation" in row.kernel] == ["stem"]


def test_sequential_is_fused() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    fast = converted(model, torch.randn(5, 9))
    assert [m.clamp[0] for m in fast if isinstance(m, SparseLinear)] == [0.0, None, None]


def test_a_watched_activation_stays() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU())
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    fast = converted(model, torch.randn(5, 9))
    assert isinstance(fast[1], nn.ReLU) and fast[0].clamp == (None, None)
    seen.clear()
    fast(torch.randn(5, 9))
    assert len(seen) == 1


def test_a_model_that_fx_cannot_trace_says_so() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(2, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.relu(y) if bool(y.sum() > 0) else F.relu(y)

    fast = converted(Branches(), torch.randn(1, 2, 3, 3))
    assert isinstance(fast.conv, SparseConv2d) and fast.conv.clamp == (None, None)
    assert any("fx traced none" in note for note in fast.report.notes)
