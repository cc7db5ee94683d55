"""Encoders of torch.nn written out in the graph: one program, and what refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import assert_close, words
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.io import load, save

WIDTH, HEADS = 32, 4
POST = "csr csr csr attention csr norm csr csr norm"
PRE = "norm csr csr csr attention csr norm csr csr"


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 48, **{"batch_first": True, **options})


def encoder(depth: int = 2, norm: nn.Module | None = None, **options: Any) -> nn.Module:
    return nn.TransformerEncoder(layer(**options), depth, norm, enable_nested_tensor=False)


class Between(nn.Module):
    """An encoder or attention inside of another model."""

    def __init__(self, inner: nn.Module, **options: Any) -> None:
        super().__init__()
        self.before, self.inner, self.after = (
            nn.Linear(WIDTH, WIDTH), inner, nn.Linear(WIDTH, WIDTH))  # fmt: skip
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if isinstance(self.inner, nn.MultiheadAttention) or "q_proj" in self.inner._modules:
            x, _ = self.inner(x, x, x, **self.options)
        else:
            x = self.inner(x, **self.options)
        out: Tensor = self.after(x)
        return out


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})


MODELS: dict[str, tuple[nn.Module, str]] = {
    "layer": (layer(), POST),
    "layer_gelu": (layer(activation="gelu", norm_first=True), PRE),
    "layer_module": (layer(activation=nn.SiLU(), bias=False), POST),
    "encoder": (encoder(), f"{POST} {POST}"),
    "encoder_normed": (encoder(norm=nn.LayerNorm(WIDTH), norm_first=True), f"{PRE} {PRE} norm"),
    "encoder_inside": (Between(encoder(activation=F.gelu)), f"csr {POST} {POST} csr"),
    "layer_inside": (Between(layer(norm_first=True)), f"csr {PRE} csr"),
    "length_first": (Between(encoder(batch_first=False)), f"{POST} {POST}"),
    "attention": (Between(attention()), "csr csr csr csr attention csr csr"),
    "no_weights": (Between(attention(bias=False), need_weights=False),
                   "csr csr csr csr attention csr csr"),
}  # fmt: skip


def converted(model: nn.Module, x: Tensor) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for weight in (p for p in model.parameters() if p.dim() > 1):
        weight.data *= torch.rand(weight.shape, generator=generator) < 0.1
    return sp.convert(model.eval(), x)


@pytest.mark.parametrize("name", MODELS)
def test_one_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    model, expected = MODELS[name]
    x = torch.randn(3, 11, WIDTH)
    fast = converted(model, x)
    assert " ".join(words(fast)) == expected
    save(fast, tmp_path / "file")
    loaded = load(tmp_path / "file", model)
    with torch.no_grad():
        for given in (x, x[:1, :7], torch.cat([x, x], 1)):
            assert_close(fast(given), model(given))
            assert_close(loaded(given), model(given))


REFUSED = {
    "masked": Between(encoder(), mask=nn.Transformer.generate_square_subsequent_mask(11)),
    "masked_attention": Between(attention(), key_padding_mask=torch.zeros(3, 11).bool()),
    "own_keys": Between(attention(add_bias_kv=True)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_stay_with_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    model, x = REFUSED[name], torch.randn(3, 11, WIDTH)
    fast = converted(model, x)
    assert not any("attention" in line for line in words(fast))
    with torch.no_grad():
        assert_close(fast(x), model(x))


def test_weights_that_are_read_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.after = attention(), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = self.inner(x, x, x)
            return self.after(y), weights

    model, x = Reads(), torch.randn(3, 11, WIDTH)
    fast = converted(model, x)
    with torch.no_grad():
        for got, expected in zip(fast(x), model(x), strict=True):
            assert_close(got, expected)
