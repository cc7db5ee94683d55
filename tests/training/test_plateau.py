"""Plateau thresholding: what is cut, from which state, and that it stays zero."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from method_cases import OPTIMIZERS, batch, hooks, net
from torch import Tensor, nn

from sparseprune.training import L1, L2, Lobster, Method, Plateau, Serene


def line(weights: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False).double()
    layer.weight.data = torch.tensor([weights], dtype=torch.float64)
    return layer


def prepared(
    model: nn.Module, pwe: int = 1, twt: float = 0.5, **kwargs: object
) -> tuple[Plateau, torch.optim.Optimizer, list[Tensor]]:
    """L_val = 1 + sum of |w_0 - w|, w_0 the first weights; all validated weights are recorded."""
    seen: list[Tensor] = []
    goal = [w.detach().clone() for w in model.parameters()]

    def validate(m: nn.Module) -> float:
        assert not m.training and not torch.is_grad_enabled()
        seen.append(torch.cat([w.detach().flatten() for w in m.parameters()]).clone())
        off = sum((w - g).abs().sum() for w, g in zip(m.parameters(), goal, strict=True))
        return 1 + float(off)

    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plateau = Plateau(validate, pwe, twt, **kwargs).prepare(model, optimizer)
    return plateau, optimizer, seen


@pytest.mark.parametrize(
    ("twt", "zeroed"), [(0.0, 0), (0.05, 0), (0.12, 1), (0.35, 2), (0.5, 2), (0.65, 3), (1.1, 4)]
)
def test_the_largest_threshold_within_the_tolerance(twt: float, zeroed: int) -> None:
    """Cutting the k smallest of 0.1, 0.2, 0.3, 0.4, 5 costs 0.1, 0.3, 0.6, 1.0."""
    model = line([0.3, -0.1, 5.0, 0.2, -0.4])
    plateau, _, _ = prepared(model, twt=twt)
    assert not plateau.step(1.0)
    cut = plateau.step(1.0)  # no gain
    assert cut == bool(zeroed) and plateau.done == (not zeroed)
    expected = torch.tensor([[0.3, -0.1, 5.0, 0.2, -0.4]], dtype=torch.float64)
    expected[expected.abs() < (zeroed + 0.5) / 10] = 0
    assert torch.equal(model.weight.detach(), expected)
    masks = plateau.finalize()
    assert torch.equal(masks["weight"], expected != 0)
    assert not model._load_state_dict_post_hooks


def test_the_search_begins_at_the_mean() -> None:
    model = line([0.3, -0.1, 5.0, 0.0, -0.6])  # live mean 1.5: all but 5 would go
    plateau, _, seen = prepared(model)
    plateau.step(1.0)
    plateau.step(1.0)
    assert seen[0].tolist() == [0.3, -0.1, 5.0, 0.0, -0.6]
    assert seen[1].tolist() == [0.0, 0.0, 5.0, 0.0, 0.0]  # T = 1.5
    assert seen[2].tolist() == [0.0, 0.0, 5.0, 0.0, 0.0]  # T = 0.75
    assert seen[3].tolist() == [0.0, 0.0, 5.0, 0.0, -0.6]  # T = 0.375


def test_every_number_of_cuts_against_all_thresholds() -> None:
    """Bisection finds what trying every weight as the threshold finds."""
    for seed in range(20):
        torch.manual_seed(seed)
        weights = torch.randn(12).double()
        twt = float(torch.rand(())) * 5
        model = line(weights.tolist())
        plateau, _, _ = prepared(model, twt=twt)
        plateau.step(1.0)
        plateau.step(1.0)
        sizes = weights.abs().sort().values
        costs = sizes.cumsum(0)  # of cutting the 1, 2, ... smallest
        allowed = int((costs[:-1] <= twt).sum())  # the largest always stays
        found = int((model.weight == 0).sum())
        # the search may end early, with losses less than 5 % of the bound apart
        slack = costs[:-1] <= twt - 0.05 * (1 + twt)
        assert int(slack.sum()) <= found <= allowed


def test_waiting_and_the_best_state() -> None:
    model = nn.Sequential(line([1.0, 0.1, 3.0]), nn.BatchNorm1d(1).double())
    plateau, _, _ = prepared(model, pwe=3, twt=0.5)
    plateau.step(2.0)
    model[0].weight.data += 0.0
    assert not plateau.step(1.0)  # the best
    best = copy.deepcopy(model.state_dict())
    for loss in (1.5, math.nan):
        model[0].weight.data += 1
        model[1].running_mean += 1
        assert not plateau.step(loss)
    assert model[1].running_mean.item() == 2
    assert plateau.step(1.0)  # as good is no gain: the third epoch
    assert torch.equal(model[1].running_mean, best["1.running_mean"])
    assert model[0].weight.tolist() == [[1.0, 0.0, 3.0]]
    assert not plateau.step(7.0)  # counts anew


def test_cut_weights_stay_zero_and_more_follow() -> None:
    model = line([0.3, -0.1, 5.0, 0.2, -0.4])
    plateau, optimizer, _ = prepared(model, twt=0.12)
    plateau.step(1.0)
    assert plateau.step(1.0)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(1, 5).double()).sum().backward()
        optimizer.step()
        assert model.weight[0, 1] == 0 and model.weight[0, 0] != 0
    model.load_state_dict({"weight": torch.full((1, 5), 0.25).double()})
    assert model.weight[0].tolist() == [0.25, 0.0, 0.25, 0.25, 0.25]
    plateau.twt = 100.0
    plateau.step(1.0)
    assert not plateau.step(1.0) and plateau.done  # all alike: none may go without the others
    with pytest.raises(ValueError, match="one that found no cut"):
        plateau.step(1.0)
    assert plateau.finalize()["weight"].tolist() == [[True, False, True, True, True]]
    assert hooks(model, optimizer) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "make",
    [lambda: L1(1e-3), lambda: L1(1e-2, proximal=True), lambda: L2(1e-3), lambda: Lobster(1e-2),
     lambda: Serene(1e-2)],
    ids=["l1", "l1-proximal", "l2", "lobster", "serene"],
)  # fmt: skip
@pytest.mark.parametrize("plateau_first", [True, False])
def test_on_top_of_another_method(name: str, make: type[Method], plateau_first: bool) -> None:
    model = net()
    x, y = batch(99, 32)

    def validate(m: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(m(x), y)

    optimizer = OPTIMIZERS[name](model.parameters())
    plateau, decay = Plateau(validate, pwe=1, twt=0.3), make()
    for method in (plateau, decay) if plateau_first else (decay, plateau):
        method.prepare(model, optimizer)
    cuts, pinned = 0, {}
    for epoch in range(12):
        for step in range(2):
            optimizer.zero_grad()
            xs, ys = batch(2 * epoch + step)
            (nn.functional.cross_entropy(model(xs), ys) + decay.penalty()).backward()
            optimizer.step()
            for n, mask in pinned.items():
                assert not model.get_parameter(n)[~mask].any()
        if not plateau.done and plateau.step(float("inf") if epoch else validate(model)):
            cuts += 1
            pinned = dict(plateau.masks)
    assert cuts
    decay.finalize()
    masks = plateau.finalize()
    assert masks.sparsity() > 0 and hooks(model, optimizer) == 0


def test_frozen_and_ignored_layers_are_not_cut() -> None:
    model = nn.Sequential(line([0.1, 1.0]), line([0.1]), line([0.1]))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[0].parameters(), 0.1)
    plateau = Plateau(lambda m: 1.0, 1, ignore="2").prepare(model, optimizer)
    plateau.step(1.0)
    plateau.step(1.0)
    assert [layer.weight.flatten().tolist() for layer in model] == [[0.0, 1.0], [0.1], [0.1]]
    assert plateau.finalize().sparsity() == pytest.approx(1 / 3)


def test_a_failing_validation_leaves_the_weights() -> None:
    model = line([0.3, -0.1, 5.0])
    calls = []

    def validate(m: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no data")
        return 1.0

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plateau = Plateau(validate, 1).prepare(model, optimizer)
    plateau.step(1.0)
    with pytest.raises(RuntimeError, match="no data"):
        plateau.step(1.0)
    assert model.weight.tolist() == [[0.3, -0.1, 5.0]] and model.training


def test_errors() -> None:
    with pytest.raises(TypeError, match="validate must be a callable"):
        Plateau(1.0)
    with pytest.raises(ValueError, match="pwe must be a whole number of at least 1"):
        Plateau(float, pwe=0)
    with pytest.raises(ValueError, match="twt must be"):
        Plateau(float, twt=-0.1)
    with pytest.raises(ValueError, match="must be prepared"):
        Plateau(float).step(1.0)
    plateau, _, _ = prepared(line([1.0, 2.0]))
    with pytest.raises(ValueError, match="loss must be at least 0, got -1"):
        plateau.step(-1.0)
