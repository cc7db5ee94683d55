"""Bad arguments of convert(), and the backend that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convert_models import Mlp, as_convert_is_tested, assert_same, prune_
from torch import nn

from sparseprune import convert
from sparseprune.nn import SparseLinear

pytestmark = as_convert_is_tested


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "cpus"}, r"backend must be .* got 'cpus'; did you mean 'cpu'"),
        ({"backend": "cuda"}, r"backend must be one that serves cpu, got 'cuda'; "),
        ({"format": "crs"}, r"format must be .* got 'crs'; did you mean 'csr'"),
        ({"format": "dense"}, r"format must be .* got 'dense'; known: auto, csr, bitmask"),
        ({"keep_dense": "neve"}, r"keep_dense must be .* got 'neve'; did you mean 'never'"),
        ({"keep_dense": True}, r"keep_dense must be 'auto' or 'never', got True"),
    ],
)
def test_bad_choices_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"convert: {message}"):
        convert(nn.Linear(8, 8), torch.randn(2, 8), **arguments)


@pytest.mark.parametrize("model", [None, 3, "model", lambda x: x, nn.Linear], ids=str)
def test_not_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"convert: model must be an nn\.Module, got"):
        convert(model, torch.randn(2, 8))


@pytest.mark.parametrize(
    "model", [nn.Identity(), nn.Sequential(), nn.ConvTranspose1d(3, 3, 3)], ids=str
)
def test_nothing_to_convert(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"Conv1d, Conv2d or Conv3d layers.*nothing to convert"):
        convert(model, torch.randn(2, 3, 8))


@pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")
def test_a_model_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"convert: model must .*meta"):
        convert(nn.Linear(8, 8, device="meta"), torch.randn(2, 8, device="meta"))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_wanted_backend_is_used(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "cpu":
        request.getfixturevalue("no_fallback")
    model, x = prune_(Mlp()).eval(), torch.randn(6, 24)
    fast = convert(model, x, backend=backend, keep_dense="never")
    assert {m.weight.backend for m in fast.modules() if isinstance(m, SparseLinear)} == {backend}
    assert all((backend == "reference") == ("reference" in k) for k in fast.report.kernels)
    assert_same(fast(x), model(x))
