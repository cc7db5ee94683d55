"""Pruner, budgets and sensitivity with criteria that read data."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from masked_training import holds
from prune_models import same_bits
from torch import Tensor, nn
from torch.nn import functional as F

from sparseprune import Masks, Pruner, profile, prune_to, sensitivity
from sparseprune.criteria import Trajectory
from sparseprune.schedules import Schedule, rigl


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 5, 5, generator=generator), torch.arange(8) % 3


DATA = [batch(100), batch(101)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def running(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


class Counted:
    """Batches that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads += 1
        return iter(DATA)


@pytest.mark.parametrize("criterion", ["taylor", "wanda", "sparsegpt", "taylor_activation"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_pruner_measures_anew_in_every_update(criterion: str, scope: str) -> None:
    """Trap 4: batch norm learns in training alone; and gradients stay for regrowth."""
    model, data = net(), Counted()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    plan = Schedule(0, 6, 2, "linear")
    pruner = Pruner(0.6, plan, criterion, scope, data=data, loss=F.cross_entropy)
    pruner.prepare(model, optimizer)
    for step in range(1, 9):
        train(model, optimizer, step)
        before, gradients = running(model), [p.grad.clone() for p in model.parameters()]
        pruner.step()
        assert all(map(torch.equal, running(model), before)) and model.training
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)
        )
        assert holds(pruner.masks, model, optimizer)
    assert data.reads == 3  # steps 2, 4, 6; at 0 there is nothing to remove
    assert pruner.finalize().sparsity() == pytest.approx(0.6, abs=0.02)  # Wanda rounds by row


def test_regrowth_after_a_measured_update_in_the_same_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    plan = Schedule(0, 6, 2, "linear")
    pruner = Pruner(0.6, plan, "taylor", data=DATA, loss=F.cross_entropy, regrowth=rigl(8, 2))
    pruner.prepare(model, optimizer)
    for step in range(1, 9):
        train(model, optimizer, step)
        pruner.step()
        assert holds(pruner.masks, model, optimizer)
    assert pruner.finalize().sparsity() == pytest.approx(0.6, abs=0.01)


def test_movement_while_training() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with Trajectory(model, optimizer) as trajectory:
        pruner = Pruner(0.5, Schedule(2, 6, 2), "movement", data=trajectory)
        pruner.prepare(model, optimizer)
        for step in range(1, 8):
            train(model, optimizer, step)
            pruner.step()
    assert pruner.finalize().sparsity() == pytest.approx(0.5, abs=0.01)


def test_a_failed_measurement_leaves_model_and_masks() -> None:
    """The loss turns NaN at the second update."""
    model, poison = net(), [0.0]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + poison[0]

    pruner = Pruner(0.5, Schedule(1, 2, 1, initial=0.3), "taylor", data=DATA, loss=loss)
    pruner.prepare(model, optimizer)
    train(model, optimizer, 1)
    pruner.step()
    train(model, optimizer, 2)
    before, masks = copy.deepcopy(model), pruner.masks
    poison[0] = float("nan")
    with pytest.raises(ValueError, match=r"prune, criterion 'taylor': the loss must be finite"):
        pruner.step()
    assert same_bits(model, before) and pruner.masks is masks
    train(model, optimizer, 3)
    assert holds(masks, model, optimizer)


def test_an_iterator_is_refused() -> None:
    with pytest.raises(ValueError, match="Pruner: data must be readable in every update, got an i"):
        Pruner(0.5, criterion="taylor", data=iter(DATA), loss=F.cross_entropy)


def test_a_criterion_that_needs_data_given_none() -> None:
    model = net()
    pruner = Pruner(0.5, criterion="wanda")
    with pytest.raises(ValueError, match="criterion 'wanda': data must be an iterable of batches"):
        pruner.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    assert same_bits(model, net())
    with pytest.raises(ValueError, match="prune_to, criterion 'wanda': data must be an iterable"):
        prune_to(model, "parameters", 0.5, criterion="wanda")
    with pytest.raises(ValueError, match="sensitivity, criterion 'wanda': data must be an iterab"):
        sensitivity(model, lambda m: 0.0, criterion="wanda")
    assert same_bits(model, net())


@pytest.mark.filterwarnings("ignore:prune. the global")
@pytest.mark.parametrize("criterion", ["taylor", "sparsegpt", "taylor_activation"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("budget", ["parameters", "macs"])
def test_a_budget_by_a_criterion_that_needs_data(criterion: str, scope: str, budget: str) -> None:
    model, data, x = net(), Counted(), batch(0)[0]
    before = running(model)
    done = prune_to(
        model, budget, 0.5, x, criterion=criterion, scope=scope, data=data, loss=F.cross_entropy
    )
    assert data.reads == 1 and all(map(torch.equal, running(model), before))
    counted = profile(model, x, latency=False)
    cost = counted.nonzeros if budget == "parameters" else counted.nonzero_macs
    assert cost == done.cost <= 0.5 * done.dense and done.masks == Masks.from_model(model)
    moved = [model.get_parameter(n)[m] != net().get_parameter(n)[m] for n, m in done.masks.items()]
    assert any(part.any() for part in moved) == (criterion == "sparsegpt")


@pytest.mark.parametrize("criterion", ["taylor", "sparsegpt"])
def test_sensitivity_by_a_criterion_that_needs_data(criterion: str) -> None:
    model, data = net(), Counted()

    def evaluate(model: nn.Module) -> float:
        return float(F.cross_entropy(model(DATA[0][0]), DATA[0][1]))

    scan = sensitivity(model, evaluate, (0.5, 0.9), criterion=criterion, data=data,
                       loss=F.cross_entropy)  # fmt: skip
    assert data.reads == 1 and same_bits(model, net()) and len(scan.points) == 4
    done = prune_to(model, "parameters", 0.7, sensitivity=scan, criterion=criterion, data=DATA,
                    loss=F.cross_entropy)  # fmt: skip
    assert done.cost <= 0.7 * done.dense
