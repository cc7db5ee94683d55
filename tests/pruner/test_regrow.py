"""RigL and SET: who goes and who comes, by hand and by brute force; counts never change."""

from __future__ import annotations

import pytest
import torch
from masked_training import OPTIMIZERS, batch, holds, net, train
from torch import nn

from sparseprune.masks import Masks
from sparseprune.pruning import Pruner
from sparseprune.pruning.regrow import regrow
from sparseprune.schedules import Regrowth, Schedule, rigl, set_evolution


def parameter(values: list[float], gradient: list[float] | None) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor([values]))
    weight.grad = None if gradient is None else torch.tensor([gradient])
    return weight


def test_rigl_by_hand() -> None:
    """Half of four kept weights move: 0.1 and -0.2 go; 7 and -9 have the largest gradients."""
    weight = parameter([0.1, -0.2, 3.0, 4.0, 0.0, 0.0, 0.0], [0.0, 5.0, 99.0, 0.0, 7.0, 1.0, -9.0])
    masks = Masks({"w": weight.detach() != 0})
    rule = Regrowth(end=100, fraction=0.5, decay="constant")
    moved = regrow(masks, {"w": weight}, rule, 1)
    assert moved is not None and moved["w"].int().tolist() == [[0, 0, 1, 1, 1, 0, 1]]


def test_a_dropped_weight_may_come_back() -> None:
    """RigL's candidates are all but what stays: the dropped 0.1 has the largest gradient."""
    weight = parameter([0.1, 3.0, 0.0], [9.0, 0.0, 1.0])
    masks = Masks({"w": weight.detach() != 0})
    rule = Regrowth(end=100, fraction=0.5, decay="constant")
    assert regrow(masks, {"w": weight}, rule, 1) == masks


def test_ties_go_by_position() -> None:
    weight = parameter([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0])
    rule = Regrowth(end=100, fraction=0.5, decay="constant")
    moved = regrow(Masks({"w": weight.detach() != 0}), {"w": weight}, rule, 1)
    assert moved is not None and moved["w"].int().tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("step", [1, 50, 99, 100])
def test_rigl_is_brute_force(step: int) -> None:
    rule = rigl(end=100)
    weight = nn.Parameter(torch.randn(20, 30))
    weight.grad = torch.randn(20, 30)
    mask = torch.rand(20, 30) < 0.2
    moved = regrow(Masks({"w": mask}), {"w": weight}, rule, step)
    assert moved is not None
    k = round(rule.share(step) * int(mask.sum()))
    flat = mask.flatten()
    alive = flat.nonzero().flatten()
    drop = alive[weight.detach().abs().flatten()[alive].argsort()[:k]]
    stays = flat.clone()
    stays[drop] = False
    grow = weight.grad.abs().flatten().masked_fill(stays, -1).topk(k).indices
    stays[grow] = True
    assert torch.equal(moved["w"].flatten(), stays)


@pytest.mark.parametrize("rule", [rigl(40, 2), set_evolution(40, 2)], ids=["rigl", "set"])
def test_counts_stay_and_grown_weights_start_at_zero(rule: Regrowth) -> None:
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(0.7, scope="local", regrowth=rule).prepare(model, optimizer)
    counts = [int(mask.sum()) for mask in pruner.masks.values()]
    moves = 0
    for step in range(1, 41):
        train(model, optimizer, range(step, step + 1))
        before = pruner.masks
        moves += pruner.step()
        assert [int(mask.sum()) for mask in pruner.masks.values()] == counts
        for name, mask in pruner.masks.items():
            grown = mask & ~before[name]
            assert not model.get_parameter(name)[grown].any()
            state = optimizer.state[model.get_parameter(name)]
            assert not state["exp_avg"][grown].any() and not state["exp_avg_sq"][grown].any()
        assert holds(pruner.masks, model, optimizer)
    assert moves == 20
    train(model, optimizer, range(50, 52))
    alive = [int((model.get_parameter(n) != 0).sum()) for n in pruner.masks]
    assert sum(alive) > 0.8 * sum(counts)  # they do train, but for those of dead units


def test_random_growth_depends_on_seed_step_and_layer_alone() -> None:
    weights = {name: nn.Parameter(torch.ones(10, 10)) for name in "ab"}
    masks = Masks({name: torch.eye(10, dtype=torch.bool) for name in weights})

    def grown(seed: int, step: int) -> Masks:
        torch.manual_seed(torch.randint(99, ()).item())  # the global state plays no part
        moved = regrow(masks, weights, set_evolution(9, 1, seed=seed), step)
        assert moved is not None
        return moved

    first = grown(0, 1)
    assert first == grown(0, 1)
    assert first != grown(0, 2) and first != grown(1, 1)
    assert not torch.equal(first["a"], first["b"])


def test_gradients_missing_or_not_finite() -> None:
    """Trap 15: missing gradients are asked for, overflown ones not believed."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(0.5, regrowth=rigl(9, 1)).prepare(model, optimizer)
    with pytest.raises(ValueError, match=r"step\(\) after optimizer\.step\(\) and before"):
        pruner.step()
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    model[2].weight.grad[0, 0] = float("nan")
    before = pruner.masks
    assert not pruner.step() and pruner.masks == before


def test_an_unused_layer_keeps_its_weights() -> None:
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(0.5, scope="local", regrowth=rigl(9, 1)).prepare(model, optimizer)
    before = pruner.masks
    model[0](torch.randn(4, 8)).square().sum().backward()
    assert pruner.step()
    assert torch.equal(pruner.masks["1.weight"], before["1.weight"])
    assert not torch.equal(pruner.masks["0.weight"], before["0.weight"])


def test_rigl_from_a_sparse_start_learns() -> None:
    """At 90 % from the first step, moving weights beats leaving them where chance put them."""

    def final_loss(rule: Regrowth | None) -> float:
        model = net(1)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        first = lambda w: torch.rand(w.shape, generator=torch.Generator().manual_seed(2))  # noqa: E731
        pruner = Pruner(0.9, Schedule(), first, scope="local", regrowth=rule)
        pruner.prepare(model, optimizer)
        x, _ = batch(0)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        for _ in range(300):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            pruner.step()
        return loss.item()

    assert final_loss(rigl(225, 10)) < 0.5 * final_loss(None)
