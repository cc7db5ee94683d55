"""Whole networks of the zoo: dense torch, and converted at several sparsities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.bench import Network, stem_and_classifier
from sparseprune.convert import convert
from sparseprune.profile import profile
from sparseprune.prune import prune

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.2, warmup=True, warmup_iterations=2)

NETWORKS = (
    Network("mlp rows=1", "mlp", 1),
    Network("mlp rows=128", "mlp", 128),
    Network("vgg16_features 32x32", "vgg16_features", 1),
    Network("resnet20", "resnet20", 1),
    Network("gpt_tiny", "gpt_tiny", 1),
    Network("vit_s16 depth=2", "vit_s16", 1, {"depth": 2}),
)
SPARSITIES = (0.8, 0.9, 0.95)


def build(network: Network) -> tuple[nn.Module, Tensor]:
    """The network in eval mode and its input, the same ones at every call."""
    torch.manual_seed(0)
    return zoo.build(network.name, **network.options).eval(), network.inputs()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.title)
def test_dense(network: Network, compare: Callable[..., None]) -> None:
    model, x = build(network)
    cost = profile(model, x, latency=False)
    with torch.inference_mode():
        expected = model(x)
    compare(lambda: model(x), expected, cost.macs, cost.macs, sparsity=0.0, nonzeros=cost.nonzeros)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.title)
def test_converted(network: Network, sparsity: float, compare: Callable[..., None]) -> None:
    model, x = build(network)
    prune(model, sparsity, scope="local", ignore=stem_and_classifier(model))
    with torch.inference_mode():
        expected = model(x)
    fast = convert(model, x)
    cost = profile(fast, x, latency=False)
    facts = {"sparsity": sparsity, "nonzeros": cost.nonzeros, "kernels": fast.report.kernels}  # type: ignore[union-attr]
    compare(lambda: fast(x), expected, cost.macs, cost.executed_macs, **facts)
