"""Whole networks: one program each where nothing stands between, and the same outputs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from program_models import assert_close, planned, sparsify, words
from torch import Tensor

from sparseprune import zoo
from sparseprune.program.fold import fold_batchnorm
from sparseprune.program.planned import unplan

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "mlp": ({"width": 64}, (64,), 1),
    "lenet_300_100": ({}, (1, 28, 28), 1),
    "lenet_5": ({}, (1, 28, 28), 1),
    "resnet20": ({}, (3, 32, 32), 1),
    "resnet50": ({"num_classes": 10}, (3, 64, 64), 1),
    "mobilenet_v1": ({"num_classes": 10}, (3, 32, 32), 1),
    "mobilenet_v2": ({"num_classes": 10}, (3, 32, 32), 1),
    "vgg16_cifar": ({}, (3, 32, 32), 1),
    "gpt_tiny": ({}, (), 2),
}
"""Name -> options, shape of an example, number of different programs."""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("folded", [False, True])
def test_network(name: str, folded: bool) -> None:
    options, shape, count = NETWORKS[name]
    model = zoo.build(name, **options).eval()
    x = torch.randn(1, *shape) if shape else zoo.example_inputs(name)[:, :16]
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    if folded and not norms:
        pytest.skip("nothing to fold")
    if folded:
        assert fold_batchnorm(model) == len(norms)
    sparsify(model, density=0.1)
    planned(model, x)
    assert len(set(words(model))) == count
    two: Tensor = torch.cat([x, x.roll(1, -1)])
    with torch.no_grad():
        got, copied = model(two), deepcopy(model)(two)
        assert_close(got, unplan(model)(two))
        assert torch.equal(got, copied)


def test_folded_resnets_are_layers_alone() -> None:
    model = zoo.build("resnet50").eval()
    fold_batchnorm(model)
    planned(sparsify(model, density=0.05), torch.randn(1, 3, 64, 64))
    assert set(words(model)[0].split()) == {"csr", "pool", "mean", "flatten"}


@pytest.mark.slow
def test_alexnet() -> None:
    model = sparsify(zoo.build("alexnet").eval(), density=0.1)
    x = zoo.example_inputs("alexnet")
    expected = model(x)
    assert_close(planned(model, x)(x), expected)
