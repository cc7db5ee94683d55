"""Activations that forwards write out, and what only looks like one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from program_models import Lambda, assert_close, planned, programs, sparsify, words
from torch import Tensor, nn

from sparseprune.program.steps import Csr


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def cubes(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def mish_by_log(x: Tensor) -> Tensor:
    return x * (1 + x.exp()).log().tanh()


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "new_gelu": (new_gelu, "gelu_tanh"),
    "cubes": (cubes, "gelu_tanh"),
    "erf": (erf, "gelu"),
    "swish": (swish, "silu"),
    "mish": (mish, "mish"),
    "mish_by_log": (mish_by_log, "mish"),
}


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    layers = {"a": nn.Linear(12, 20), "b": nn.Linear(20, 6)}
    return sparsify(Lambda(lambda m, x: m.b(function(m.a(x))), **layers))


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out(name: str) -> None:
    function, kind = WRITTEN[name]
    model, x = between(function), torch.randn(3, 12) * 3
    expected = model(x)
    planned(model, x)
    assert words(model) == ["csr csr"]
    assert next(s.activation.kind for s in programs(model)[0] if isinstance(s, Csr)) == kind
    assert_close(model(x), expected)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x) * 1.0


def other_constant(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 1.415))


def two_values(x: Tensor) -> Tensor:
    y = x.sum(-1, keepdim=True)
    return x * 0.5 * (1.0 + torch.erf(y / math.sqrt(2.0)))


@pytest.mark.parametrize("function", [quick_gelu, other_constant, two_values])
def test_other_expressions_stay(function: Callable[[Tensor], Tensor]) -> None:
    model, x = between(function), torch.randn(3, 12)
    dense = model(x)
    try:
        planned(model, x)
    except AssertionError as reason:
        assert "no sparse layer stands next to" in str(reason)
    assert_close(model(x), dense)


def test_what_lies_inside_may_be_read_by_others() -> None:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = m.a(x)
        inner = torch.erf(x / math.sqrt(2.0))
        return m.b(x * 0.5 * (1.0 + inner)), inner

    model = sparsify(Lambda(forward, a=nn.Linear(12, 20), b=nn.Linear(20, 6)))
    x = torch.randn(3, 12)
    expected = model(x)
    planned(model, x)
    for got, wanted in zip(model(x), expected, strict=True):
        assert_close(got, wanted)
