"""PReLU inside programs: slopes that belong to the model."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import Lambda, assert_close, conv, image, planned, sparsify, words
from torch import Tensor, nn

import sparseprune
from sparseprune.ops.run import run_reference
from sparseprune.program.planned import unplan
from sparseprune.program.program import Program

STEPS = "csr add add depthwise csr"


def between(act: nn.Module) -> tuple[Any, Tensor]:
    """Two convolutions and slopes drawn at random."""
    torch.manual_seed(0)
    for parameter in act.parameters():
        nn.init.uniform_(parameter, -1.0, 1.5)
    return sparsify(nn.Sequential(conv(), act, conv(6, 4))), image()


@pytest.mark.parametrize("slopes", [1, 6])
def test_slopes_follow_the_layer(slopes: int) -> None:
    model, x = between(nn.PReLU(slopes))
    expected = model(x)
    planned(model, x)
    assert words(model) == [STEPS]
    assert_close(model(x), expected)
    with torch.no_grad():
        model[1].weight.mul_(-2)
    assert_close(model(x), unplan(deepcopy(model))(x))
    model[1].weight = nn.Parameter(torch.rand(slopes))
    assert_close(model(x), unplan(deepcopy(model))(x))


@pytest.mark.parametrize("dims", [1, 3])
def test_images_of_other_dimensions(dims: int) -> None:
    make: Any = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = sparsify(nn.Sequential(make(3, 8, 3), nn.PReLU(8), make(8, 4, 1)))
    x = torch.randn(2, 3, *(9, 8, 7)[:dims])
    expected = model(x)
    assert_close(planned(model, x)(x), expected)
    assert words(model) == [STEPS]


def test_functions_of_a_parameter() -> None:
    for function in (F.prelu, torch.prelu):
        model = Lambda(lambda m, x, f=function: m.b(f(m.a(x), m.slopes)), a=conv(), b=conv(6, 4))
        model.slopes = nn.Parameter(torch.rand(6))
        sparsify(model)
        x = image()
        expected = model(x)
        assert_close(planned(model, x)(x), expected)
        assert words(model) == [STEPS]


def test_infinities_stay_what_they_are() -> None:
    model, x = between(nn.PReLU(6))
    planned(model, x)
    program = next(m for m in model.modules() if isinstance(m, Program))
    x[0, :, 3, 3], x[1, :, 5, 5] = -1e38, 1e38  # products and sums overflow
    x[:, 0] *= 10
    (expected,) = run_reference([x], program.tensors(), program.text)
    assert not bool(expected.isfinite().all())
    torch.testing.assert_close(model(x).isnan(), expected.isnan())


def test_tokens_keep_their_layer() -> None:
    layers = [nn.Linear(8, 12), nn.PReLU(5), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)]
    model, x = sparsify(nn.Sequential(*layers)), torch.randn(2, 5, 8)
    expected = model(x)
    planned(model, x)
    assert not any("depthwise" in each for each in words(model))
    assert_close(model(x), expected)


@pytest.mark.parametrize("slopes", [1, 6])
def test_saved_and_loaded(slopes: int, tmp_path: Path) -> None:
    model, x = between(nn.PReLU(slopes))
    planned(model, x)
    sparseprune.save(model, tmp_path / "slopes.safetensors")
    loaded = sparseprune.load(tmp_path / "slopes.safetensors")
    assert words(loaded) == [STEPS]
    assert torch.equal(loaded(x), model(x))
