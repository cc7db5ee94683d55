"""Batch normalisation folded into the layer before it: exact, zeros kept, and only where alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from program_models import Lambda, conv, image
from torch import nn

from sparseprune import zoo
from sparseprune.program.fold import fold_batchnorm


def trained(model: nn.Module) -> nn.Module:
    """With statistics and factors of every sign, and zeros in its weights."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3)
            if module.weight is not None:
                module.weight.data.normal_()
                module.bias.data.normal_()
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() > 1:
            weight.data[torch.rand_like(weight) < 0.5] = 0
    return model.eval()


FOLDED: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "conv2d": lambda: (nn.Sequential(conv(), nn.BatchNorm2d(6)), image()),
    "no_bias": lambda: (nn.Sequential(conv(bias=False), nn.BatchNorm2d(6)), image()),
    "groups": lambda: (nn.Sequential(conv(groups=3), nn.BatchNorm2d(6)), image()),
    "no_factors": lambda: (nn.Sequential(conv(), nn.BatchNorm2d(6, affine=False)), image()),
    "conv1d": lambda: (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), torch.randn(2, 3, 9)),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(3, 6, 2), nn.BatchNorm3d(6)),
        torch.randn(2, 3, 4, 4, 4),
    ),
    "linear": lambda: (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), torch.randn(3, 5)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_fold_is_exact(name: str) -> None:
    model, x = FOLDED[name]()
    trained(model)
    dense = deepcopy(model)
    expected = deepcopy(model).double()(x.double())
    assert fold_batchnorm(model, x) == 1
    assert isinstance(model[1], nn.Identity) and type(model[0]) is type(dense[0])
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model[0].weight == 0, dense[0].weight == 0)
    assert model[0].weight.requires_grad == dense[0].weight.requires_grad


def test_shared_tensors_are_not_written_to() -> None:
    model, x = FOLDED["conv2d"]()
    held = trained(model)[0].weight
    before = held.clone()
    fold_batchnorm(model, x)
    assert torch.equal(held, before) and not torch.equal(model[0].weight, before)


def test_linear_over_other_dimensions() -> None:
    """[N, C, L]: BatchNorm1d normalises C, the linear layer made L."""
    model = trained(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    assert fold_batchnorm(model, torch.randn(2, 6, 5)) == 0
    assert fold_batchnorm(model) == 0


def watched() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[0].register_forward_hook(lambda *_: None)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6), conv())
    model[2].weight = model[0].weight
    return model


layer, norm = conv(), nn.BatchNorm2d(6)
KEPT: dict[str, nn.Module] = {
    "called_twice": nn.Sequential(layer, norm, layer, norm),
    "read_twice": Lambda(lambda m, x: m.norm(y := m.conv(x)) + y, conv=conv(), norm=norm),
    "watched": watched(),
    "tied": tied(),
    "reads_the_weight": Lambda(
        lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(), conv=conv(), norm=norm
    ),
    "no_statistics": nn.Sequential(conv(), nn.BatchNorm2d(6, track_running_stats=False)),
    "after_an_activation": nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(6)),
    "subclass": nn.Sequential(type("Own", (nn.Conv2d,), {})(6, 6, 3), nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    model = KEPT[name].eval()
    before = dict(model.named_modules())
    assert fold_batchnorm(model, image()) == 0
    assert dict(model.named_modules()) == before


def test_untraceable_models_stay() -> None:
    model = Lambda(lambda m, x: m.n(m.c(x)) if x.sum() > 0 else x, c=conv(), n=nn.BatchNorm2d(6))
    reason = fold_batchnorm(model.eval())
    assert isinstance(reason, str) and "TraceError" in reason
    assert isinstance(model.n, nn.BatchNorm2d)


def test_a_network() -> None:
    model = trained(zoo.build("resnet20"))
    x = zoo.example_inputs("resnet20")
    expected = deepcopy(model).double()(x.double())
    assert fold_batchnorm(model) == 19
    assert fold_batchnorm(model) == 0
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-4, atol=1e-4)
