"""Whole networks: one program each where nothing stands between, and the same outputs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from program_models import assert_close, planned, sparsify, words
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.program.fold import fold_batchnorm
from sparseprune.program.planned import unplan
from sparseprune.zoo.vgg import VGG16

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "mlp": ({"width": 64}, (64,), 1),
    "lenet_300_100": ({}, (1, 28, 28), 1),
    "lenet_5": ({}, (1, 28, 28), 1),
    "resnet20": ({}, (3, 32, 32), 1),
    "resnet50": ({"num_classes": 10}, (3, 64, 64), 1),
    "mobilenet_v1": ({"num_classes": 10}, (3, 32, 32), 1),
    "mobilenet_v2": ({"num_classes": 10}, (3, 32, 32), 1),
    "resnext50": ({"num_classes": 10}, (3, 64, 64), 1),
    "densenet121": ({"num_classes": 10}, (3, 64, 64), 1),
    "shufflenet_v2": ({"num_classes": 10}, (3, 64, 64), 1),
    "efficientnet_b0": ({"num_classes": 10}, (3, 64, 64), 1),
    "yolov5s": ({"classes": 2}, (3, 64, 64), 1),
    "vgg16_cifar": ({}, (3, 32, 32), 1),
    "gpt_tiny": ({}, (), 1),
    "vit_s16": ({"image": 64, "depth": 2, "num_classes": 10}, (3, 64, 64), 1),
}
"""Name -> options, shape of an example, number of different programs."""
NOT_FOLDED = {"densenet121": 62}
"""Norms of what several layers made."""


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
        assert fold_batchnorm(model) == len(norms) - NOT_FOLDED.get(name, 0)
    sparsify(model, density=0.1)
    planned(model, x)
    assert len(set(words(model))) == count
    two: Tensor = torch.cat([x, x.roll(1, -1)])
    with torch.no_grad():
        got, copied = model(two), deepcopy(model)(two)
        assert_close(got, unplan(model)(two))
        assert torch.equal(got, copied)


def test_the_classifier_of_vgg16_is_in_its_program() -> None:
    """At 224 px the pooling to 7 x 7 finds 7 x 7; elsewhere it averages or repeats."""
    model = VGG16(num_classes=10).eval()
    for place, (inputs, outputs) in {0: (512 * 49, 16), 3: (16, 16), 6: (16, 10)}.items():
        model.classifier[place] = nn.Linear(inputs, outputs)
    model.features = nn.Sequential(*model.features[:5], nn.MaxPool2d(16), nn.Conv2d(64, 512, 1))
    planned(sparsify(model, density=0.1), torch.randn(1, 3, 224, 224))
    assert words(model) == ["csr csr pool pool csr adaptive flatten csr csr csr"]
    for size in (224, 96, 300):
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            assert_close(model(x), unplan(deepcopy(model))(x))


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
    assert len(words(model)) == 1
