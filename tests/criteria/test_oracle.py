"""The oracle against brute force, Spearman against scipy, and what a unit costs."""

from __future__ import annotations

import math

import pytest
import torch
from hand import DATA, close, half_square, images, net
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from sparseprune.criteria import (
    FilterNorm,
    Oracle,
    Regularised,
    spearman,
    spearman_to_oracle,
    unit_scores,
)
from sparseprune.zoo.resnet import BasicBlock


def brute_force(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], after: str, width: int
) -> list[float]:
    """Loss without each channel of the module `after`, minus the loss with all; no caching."""

    def loss(silent: int | None) -> float:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            kept = torch.ones(output.shape[1])
            if silent is not None:
                kept[silent] = 0
            return output * kept.view(1, -1, *[1] * (output.dim() - 2))

        handle = model.get_submodule(after).register_forward_hook(hook)
        with torch.no_grad():
            total = sum(float(F.cross_entropy(model(x), y)) * len(x) for x, y in data)
        handle.remove()
        return total / sum(len(x) for x, _ in data)

    return [loss(unit) - loss(None) for unit in range(width)]


def test_oracle_is_brute_force() -> None:
    model, data = images()
    model.eval()
    found = unit_scores(model, "oracle", data, F.cross_entropy)
    for name, after, width in (("0.weight", "2", 4), ("4.weight", "5", 6), ("7.weight", "7", 3)):
        assert close(found[name], brute_force(model, data, after, width), 1e-5)


def test_oracle_on_a_residual_block() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 4, 1, None)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(4 * 25, 3)).eval()
    data = [(torch.randn(6, 4, 5, 5), torch.randint(3, (6,)))]
    found = unit_scores(model, "oracle", data, F.cross_entropy)
    assert close(found["0.conv2.weight"], brute_force(model, data, "0.bn2", 4), 1e-5)


def test_oracle_runs_only_what_comes_after() -> None:
    calls: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.index)
            return super().forward(x)

    model = nn.Sequential(*(Counted(3, 3) for _ in range(3)))
    for index, layer in enumerate(model):
        layer.index = index
    unit_scores(model, "oracle", [torch.randn(2, 3)], lambda out, _: out.sum())
    # one whole run, then 3 units of each layer: only what is behind the layer runs again
    assert [calls.count(i) for i in range(3)] == [1, 1 + 3, 1 + 6]
    assert all("forward" not in vars(module) for module in model.modules())


def test_absolute_oracle() -> None:
    found = list(unit_scores(net(), Oracle(absolute=True), DATA, half_square).values())
    assert close(found[0], [10.5, 0]) and close(found[1], [1.5])


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_spearman_is_scipys(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    for _ in range(10):
        a, b = (torch.randint(levels, (30,), generator=generator).float() for _ in range(2))
        expected = stats.spearmanr(a.numpy(), b.numpy()).statistic
        assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_spearman_at_its_limits() -> None:
    a = torch.tensor([1.0, 2.0, 3.0])
    assert spearman(a, a.exp()) == 1 and spearman(a, -a) == -1
    assert math.isnan(spearman(a, torch.ones(3)))
    for b in (torch.ones(2), torch.tensor([1.0, math.nan, 2.0])):
        with pytest.raises(ValueError, match="spearman: a and b must be"):
            spearman(a, b)


def test_every_criterion_can_be_held_against_the_oracle() -> None:
    model, data = images()
    oracle = unit_scores(model, "oracle", data, F.cross_entropy)
    itself = spearman_to_oracle(model, "oracle", data, F.cross_entropy, oracle=oracle)
    assert itself.whole == pytest.approx(1) and itself.mean == pytest.approx(1)
    taylor = spearman_to_oracle(model, "taylor_activation", data, F.cross_entropy, oracle=oracle)
    for name, rho in taylor.layers.items():
        own = unit_scores(model, "taylor_activation", data, F.cross_entropy)[name]
        expected = stats.spearmanr(own.numpy(), oracle[name].numpy()).statistic
        assert rho == pytest.approx(expected)
    assert taylor.mean == pytest.approx(sum(taylor.layers.values()) / 3)
    with pytest.raises(ValueError, match=r"oracle must be one score per unit of '0\.weight'"):
        spearman_to_oracle(model, "fpgm", data, oracle={})


# --- resource-regularised scores


def test_regularised_by_flops() -> None:
    model, data = images()
    rule = Regularised(FilterNorm(), "flops", strength=2.0)
    found = unit_scores(model, rule, data)
    macs = {"0.weight": 2 * 9 * 64, "4.weight": 2 * 9 * 4, "7.weight": 24}  # of one unit and sample
    for name, each in macs.items():
        norm = model.get_parameter(name).detach().flatten(1).abs().sum(1)
        assert close(found[name], norm / norm.norm() - 2.0 * 2e-6 * each, 1e-6)


def test_regularised_by_memory_time_and_anything() -> None:
    model, data = images()
    theta = unit_scores(model, Regularised(FilterNorm(), strength=0.0), data)
    memory = unit_scores(model, Regularised(FilterNorm(), "memory", 1.0), data)
    assert close(theta["0.weight"] - memory["0.weight"], [(18 + 1) * 4e-6] * 4, 1e-9)
    time = unit_scores(model, Regularised(FilterNorm(), "time", 1.0), data)
    assert (theta["0.weight"] > time["0.weight"]).all()
    own = Regularised(FilterNorm(), lambda layer, row: float(layer.weight.shape[0]), 1.0)
    found = unit_scores(model, own, [(x[:1], y[:1]) for x, y in data])
    assert close(theta["0.weight"] - found["0.weight"], [1.0] * 4, 1e-6)


def test_regularised_moves_cuts_to_costly_layers() -> None:
    model, data = images()
    plain = unit_scores(model, "taylor_activation", data, F.cross_entropy)
    rule = Regularised(strength=1e3)
    costly = unit_scores(model, rule, data, F.cross_entropy)
    assert float(costly["0.weight"].max()) < float(costly["7.weight"].min())
    assert float(plain["0.weight"].max()) > float(plain["7.weight"].min())


def test_regularised_refuses() -> None:
    with pytest.raises(ValueError, match="base must be a criterion of units, got one of weights"):
        Regularised(lambda w: w)
    with pytest.raises(ValueError, match="'flops', 'memory', 'time' or a callable, got 'flop'"):
        Regularised(resource="flop")
