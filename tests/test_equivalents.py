"""Attention and layers of one's own as the layers that they are equivalent to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equivalent_problems import close, in_double, zeroed
from torch import Tensor, nn

from sparseprune import convert
from sparseprune.equivalents import equivalent, equivalents
from sparseprune.io import load, save
from sparseprune.nn import MultiheadAttention, SparseConv2d, SparseLinear

FEATURES, HEADS = 16, 4


class Own(nn.Linear):
    """As torch does, in a class of its own."""


class Masked(nn.Linear):
    """A weight that a mask prunes in every call."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.rand(sizes[1], sizes[0]) < 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, bias=self.bias)


class Standardised(nn.Conv2d):
    """A convolution whose weight has mean 0 and deviation 1 where it is not pruned."""

    def forward(self, x: Tensor) -> Tensor:
        kept = (self.weight != 0).float()
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True) * kept
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Bare(nn.Module):
    """Parameters and a function; `use` says how."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


ROWS, IMAGE, SERIES = (5, 12), (2, 6, 9, 8), (2, 6, 9)
EQUIVALENT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[nn.Module]]] = {
    "own": (lambda: Own(12, 9), ROWS, nn.Linear),
    "masked": (lambda: Masked(12, 9), ROWS, nn.Linear),
    "bare": (lambda: Bare(lambda m, x: F.linear(x, m.w), 9, 12), ROWS, nn.Linear),
    "turned": (lambda: Bare(lambda m, x: F.linear(x, m.w.t()), 12, 9), ROWS, nn.Linear),
    "standardised": (
        lambda: Standardised(6, 8, 3, stride=2, padding=1, groups=2),
        IMAGE,
        nn.Conv2d,
    ),
    "same": (
        lambda: Bare(lambda m, x: F.conv2d(x, m.w, m.b, padding="same"), 8, 6, 3, 5),
        IMAGE,
        nn.Conv2d,
    ),
    "series": (
        lambda: Bare(lambda m, x: F.conv1d(x, m.w, None, 2, 1, 2, groups=3), 9, 2, 3),
        SERIES,
        nn.Conv1d,
    ),
    "volume": (
        lambda: Bare(lambda m, x: F.conv3d(x, m.w), 4, 1, 2, 2, 2),
        (2, 1, 3, 4, 5),
        nn.Conv3d,
    ),
}
NOT_EQUIVALENT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "twice": lambda m, x: F.linear(F.linear(x, m.w), m.w),
    "more": lambda m, x: F.linear(x, m.w) * 2,
    "before": lambda m, x: F.linear(x.relu(), m.w),
    "size": lambda m, x: F.linear(x, m.w / x.shape[0]),
    "in_place": lambda m, x: F.linear(x, m.w.mul_(1.0)),
    "besides": lambda m, x: (m.w.abs(), F.linear(x, m.w))[1],
    "noise": lambda m, x: F.linear(x, m.w + torch.randn_like(m.w)),
    "branch": lambda m, x: F.linear(x, m.w) if x.sum() > 0 else x,
    "product": lambda m, x: x @ m.w,
    "two": lambda m, x: (F.linear(x, m.w), x),  # type: ignore[dict-item, return-value]
    "itself": lambda m, x: F.linear(x, x),
    "no_call": lambda m, x: x,
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_layers_of_ones_own(name: str) -> None:
    make, shape, kind = EQUIVALENT[name]
    module = zeroed(make())
    x = torch.randn(shape)
    layer = equivalent(module)
    assert type(layer) is kind
    close([layer(x)], [in_double(module, x)])
    assert list(equivalents(nn.Sequential(module), 0.3)) == [module]
    assert not equivalents(nn.Sequential(module), 0.99)
    for trained in (False, True):
        (layer,) = equivalents(module.requires_grad_(trained), 0.3).values()
        assert {p.requires_grad for p in layer.parameters()} == {trained}


@pytest.mark.parametrize("name", NOT_EQUIVALENT)
def test_other_modules_stay(name: str) -> None:
    assert equivalent(Bare(NOT_EQUIVALENT[name], 12, 12).eval()) is None


def test_layers_of_torch_and_changed_ones_stay() -> None:
    changed = Own(4, 4)
    changed.forward = lambda x: x  # type: ignore[method-assign]
    for module in (
        changed,
        nn.Linear(4, 4),
        nn.Embedding(4, 4),
        nn.Sequential(Own(4, 4)),
        nn.ReLU(),
    ):
        assert equivalent(module) is None


class Mixed(nn.Module):
    """Layers of one's own between layers of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Standardised(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, FEATURES, 1)
        self.attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(FEATURES, HEADS, 32, batch_first=True)
        self.head = Masked(FEATURES, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.norm(self.stem(x)))).flatten(2).transpose(1, 2)
        x = self.encoder(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


@pytest.mark.parametrize("keep_dense", ["auto", "never"])
def test_converted_saved_and_loaded(keep_dense: str, tmp_path: Path) -> None:
    model, x = zeroed(Mixed()), torch.randn(2, 3, 6, 5)
    expected = in_double(model, x)
    fast = convert(model, x, keep_dense=keep_dense)
    names = {row.name for row in fast.report.rows}
    assert {"stem", "head", "attention.q_proj", "encoder.self_attn.out_proj"} <= names
    assert not any("in_proj" in name for name in names)
    with torch.inference_mode():
        close([fast(x)], [expected])
    if keep_dense == "auto":
        return
    assert isinstance(fast.head, SparseLinear) and isinstance(fast.stem, SparseConv2d)
    assert {row.kernel for row in fast.report.rows}.isdisjoint({"dense"})
    save(fast, tmp_path / "file")
    for loaded in (load(tmp_path / "file"), load(tmp_path / "file", Mixed())):
        with torch.inference_mode():
            assert torch.equal(loaded(x), fast(x))
        assert isinstance(loaded.attention, MultiheadAttention)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    with torch.inference_mode():
        close([compiled(x)], [expected])


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "F.linear": (lambda: Bare(lambda m, x: F.linear(x, m.w, m.b), 12, 12), ""),
    "masked": (lambda: Masked(12, 12), ""),
    "subclass": (lambda: Own(12, 12), ""),
    "F.linear and more": (
        lambda: Bare(lambda m, x: F.linear(x, m.w) * 2, 12, 12),
        "Bare uses it itself",
    ),
    "matmul": (lambda: Bare(lambda m, x: x @ m.w, 12, 12), "Bare uses it itself"),
    "read by its parent": (
        lambda: Reads(lambda m, x: F.linear(x, m.layer.weight)),
        "read directly",
    ),
    "called by its parent": (lambda: Reads(lambda m, x: m.layer(x)), ""),
    "attention": (lambda: Reads(lambda m, x: m.own(x, x, x)[0], nn.MultiheadAttention(12, 2)), ""),
    "attention with keys of its own": (
        lambda: Reads(
            lambda m, x: m.own(x, x, x)[0], nn.MultiheadAttention(12, 2, add_bias_kv=True)
        ),
        "add_bias_kv has no sparse form",
    ),
    "bilinear": (
        lambda: Reads(lambda m, x: m.own(x, x), nn.Bilinear(12, 12, 12)),
        "Bilinear has no sparse kernel",
    ),
}
"""How a weight is used, and why it stays dense, if it does."""


class Reads(nn.Module):
    """A function of a layer that it holds."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], own: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.own, self.use = nn.Linear(12, 12), own, use
        if own is not None:
            del self.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_report_tells_what_stays_dense(name: str) -> None:
    make, reason = WEIGHTS[name]
    model, x = (
        zeroed(nn.Sequential(nn.Linear(12, 12), make(), nn.Linear(12, 12))),
        torch.randn(3, 12),
    )
    fast = convert(model, x, keep_dense="never")
    rows = [row for row in fast.report.rows if row.name.startswith("1")]
    assert rows and any(
        reason in row.reason for row in rows if (row.kernel == "dense") or not reason
    )
    assert reason or all(row.kernel != "dense" for row in rows)
    with torch.inference_mode():
        close([fast(x)], [in_double(model, x)])


def test_conv1d_of_transformers(tmp_path: Path) -> None:
    """Its weight is [inputs, outputs]."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model, x = zeroed(nn.Sequential(conv1d(9, 12), nn.GELU(), conv1d(4, 9))), torch.randn(2, 3, 12)
    fast = convert(model, x, keep_dense="never")
    assert {row.kind for row in fast.report.rows} == {"Linear"}
    with torch.inference_mode():
        close([fast(x)], [in_double(model, x)])
