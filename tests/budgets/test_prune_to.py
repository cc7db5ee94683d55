"""prune_to: the budget is met, barely, and reported as achieved (trap 18)."""

from __future__ import annotations

import math
import re

import pytest
import torch
from masked_training import batch, net
from prune_models import same_bits, small
from torch import nn

from sparseprune import profile, prune, prune_to, sensitivity
from sparseprune.budgets import costs
from sparseprune.masks import Masks

IMAGE = torch.randn(2, 3, 4, 4)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    return model


MODELS = {
    "small": (small, IMAGE),
    "mlp": (net, batch(0)[0]),
    "tied": (tied, torch.randn(3, 8)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        torch.randn(1, 4, 9, 9),
    ),
    "one layer": (lambda: nn.Linear(16, 16), torch.randn(5, 16)),
}


@pytest.mark.filterwarnings("ignore:prune")
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("target", [0.5, 0.3])
@pytest.mark.parametrize("budget", ["parameters", "macs"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_budget_is_met_and_not_by_much(
    kind: str, budget: str, target: float, scope: str
) -> None:
    make, x = MODELS[kind]
    model = make()
    done = prune_to(model, budget, target, x, scope=scope)
    counted = profile(model, x, latency=False)
    cost, dense = {
        "parameters": (counted.nonzeros, counted.parameters),
        "macs": (counted.nonzero_macs, counted.macs),
    }[budget]
    assert (done.cost, done.dense, done.target) == (cost, dense, target * dense)
    assert cost <= target * dense and done.masks == Masks.from_model(model)
    largest = max(math.prod(IMAGE.shape), 49)  # places of one weight: macs come in such steps
    room = len(done.masks) * (largest if budget == "macs" else 1)
    assert cost >= target * dense - room


@pytest.mark.parametrize("pattern", ["filter", "2:4", "block(2,2)"])
def test_other_patterns(pattern: str) -> None:
    model = net()
    done = prune_to(model, "parameters", 0.5, pattern=pattern)
    assert done.cost <= 0.5 * done.dense
    assert done.cost == sum(int(p.count_nonzero()) for p in model.parameters())


def test_absolute_numbers() -> None:
    done = prune_to(net(), "parameters", 60, unit="absolute")
    assert done.cost <= 60 == done.target and done.unit == "parameters"
    assert re.fullmatch(
        r"60 parameters of 155 \(38.7%\), asked for 60; sparsity \d\d.\d\d%", str(done)
    )


def test_a_request_for_channels_is_reported_as_what_it_removed() -> None:
    """Trap 18: half of the filters is half of the parameters, not 1 - (1 - p)^2 of them."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    done = prune_to(model, "macs", 0.5, torch.randn(1, 4, 8, 8), pattern="filter", scope="local")
    assert done.ratio == 0.5 == done.masks.sparsity()
    assert profile(model, torch.randn(1, 4, 8, 8), latency=False).nonzero_macs == done.cost


# --- latency: the clock is scripted but for one test


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A conversion takes 10 ms times density, and 1 ms; dense takes 20 ms. Notes each sparsity."""
    tried: list[float] = []

    def latency(model: nn.Module, inputs: object) -> costs.Cost:
        def cost(masks: Masks) -> tuple[float, float]:
            tried.append(masks.sparsity())
            return 1 + 10 * (1 - masks.sparsity()), 20.0

        return cost

    monkeypatch.setitem(costs.COSTS, "latency", latency)
    return tried


def test_latency_finds_the_least_sparsity(scripted: list[float]) -> None:
    done = prune_to(net(), "latency", 0.3, batch(0)[0])  # 6 ms: half of the weights
    assert done.cost <= 6 == done.target and done.masks.sparsity() == pytest.approx(0.5, abs=0.03)
    assert len(scripted) <= 9
    done = prune_to(net(), "latency", 3.0, batch(0)[0], unit="absolute", scope="local")
    assert done.cost <= 3.0 and done.masks.sparsity() == pytest.approx(0.8, abs=0.04)


def test_a_scan_decides_layer_by_layer(scripted: list[float]) -> None:
    """The layer that nothing depends on is pruned first and furthest."""

    def evaluate(model: nn.Module) -> float:
        return float((model[4].weight == 0).sum()) + 0.1 * float((model[2].weight == 0).sum())

    scan = sensitivity(net(), evaluate, (0.5, 0.9))
    model = net()
    done = prune_to(model, "latency", 0.35, batch(0)[0], sensitivity=scan)
    shares = {name: 1 - mask.float().mean().item() for name, mask in done.masks.items()}
    assert done.cost <= 7 and shares["0.weight"] == pytest.approx(0.9, abs=0.02)
    assert shares["0.weight"] > shares["2.weight"] > shares.get("4.weight", 0.0)
    assert Masks.from_model(model)["2.weight"].sum() == done.masks["2.weight"].sum()


def test_nothing_is_pruned_where_nothing_is_needed(scripted: list[float]) -> None:
    model = net()
    scan = sensitivity(net(), lambda m: float((m[0].weight == 0).sum()), (0.5,))
    done = prune_to(model, "latency", 0.6, batch(0)[0], sensitivity=scan)
    assert done.masks == Masks({}) and done.cost == 11 and same_bits(model, net())
    assert prune_to(model, "latency", 0.9, batch(0)[0]).masks.sparsity() == 0


def test_latency_measured_after_convert(no_fallback: None, threads: int) -> None:
    """For real: one layer large enough to win, half the time of dense."""
    torch.set_num_threads(1)
    model = nn.Linear(512, 512)
    done = prune_to(model, "latency", 0.7, torch.randn(32, 512))
    assert done.cost <= 0.7 * done.dense and done.unit == "ms"
    assert 0 < Masks.from_model(model).sparsity() < 0.9999


# --- bad input changes nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sparsity", 0.5), "budget must be 'parameters' or 'macs' or 'latency', got 'sparsity'.*"),
        (
            ("flops", 0.5),
            "got 'flops'; known: parameters, macs, latency; for a sparsity call prune",
        ),
        (("macs", 0.5), "example_inputs must be given for 'macs', got none"),
        (("parameters", 1.5), "target must be between 0 and 1, got 1.5; 0.5 is half of the dense"),
        (("parameters", float("nan")), "target must be between 0 and 1, got nan"),
        (("parameters", True), "target must be between 0 and 1, got True"),
        (("parameters", 0.05), "target must be within reach of parameters, got 0.05 where the le"),
    ],
)
@pytest.mark.filterwarnings("ignore:prune")
def test_bad_arguments(arguments: tuple[str, float], message: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=message):
        prune_to(model, *arguments)
    assert same_bits(model, net())


def test_bad_keywords() -> None:
    model = net()
    for keywords, message in (
        ({"unit": "ms"}, "unit must be 'ratio' or 'absolute', got 'ms'"),
        ({"pattern": "q"}, "prune_to: pattern must be a known name"),
        ({"scope": "q"}, "scope must be 'global' or 'local'"),
        ({"sensitivity": {}}, "sensitivity must be a Sensitivity, got dict"),
        ({"criterion": "q"}, "criterion must be a known name"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_to(model, "parameters", 0.5, **keywords)
    assert same_bits(model, net())


def test_a_model_pruned_before_counts_its_zeros() -> None:
    model = net()
    prune(model, 0.6)
    done = prune_to(model, "parameters", 0.4)
    assert done.cost == sum(int(p.count_nonzero()) for p in model.parameters()) <= 62
