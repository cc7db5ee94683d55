"""Lottery tickets: rewinding, rounds, controls."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from masked_training import OPTIMIZERS, holds
from prune_models import same_bits
from torch import nn

from sparseprune import Masks, prune
from sparseprune.training.lottery import Rewind, Ticket, Trial, inverted, lottery, shuffled

Optimize = Callable[..., torch.optim.Optimizer]


def network(seed: int = 0) -> nn.Sequential:
    """With batch norm, dropout and a buffer that no state_dict holds."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 20), nn.Dropout(0.3), nn.ReLU(), nn.Linear(20, 3),
    )  # fmt: skip
    model.register_buffer("calls", torch.zeros(()), persistent=False)
    return model


def build(optimize: Optimize = OPTIMIZERS["sgd"], seed: int = 0) -> Trial:
    random.seed(seed)
    np.random.seed(seed)
    model = network(seed)
    optimizer = optimize(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    return Trial(model, optimizer, scheduler, (torch.Generator().manual_seed(1),))


def train(trial: Trial, begin: int, end: int) -> float:
    """Noise from every random state there is; the data order from a generator."""
    loss = torch.zeros(())
    for _ in range(begin, end):
        x = torch.randn(16, 1, 4, 4, generator=trial.others[0])
        y = (x.mean((1, 2, 3)) * 9).long().clamp(-1, 1) + 1
        x = x + 0.01 * (random.random() + np.random.rand() + torch.rand(()))
        trial.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(trial.model.train()(x), y)
        loss.backward()
        trial.optimizer.step()
        trial.scheduler.step()
        trial.model.calls += 1
    return loss.item()


def snapshot(trial: Trial) -> Rewind:
    return Rewind(trial.model, trial.optimizer, trial.scheduler, *trial.others)


def frozen(trial: Trial) -> tuple[nn.Module, Any, Any]:
    """A copy of everything a training consists of."""
    return copy.deepcopy((trial.model, trial.optimizer.state_dict(), trial.scheduler.state_dict()))


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, in nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# --- rewinding


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_equal_after_rewinding(name: str, begin: int) -> None:
    """Train k steps, snapshot, go on; rewind, go on again, and once more: the same everything."""
    trial = build(OPTIMIZERS[name])
    train(trial, 0, begin)
    rewind, start = snapshot(trial), frozen(trial)
    losses, ends = [], []
    for _ in range(3):
        losses.append(train(trial, begin, begin + 5))
        ends.append(frozen(trial))
        rewind.restore_()
        now = frozen(trial)
        assert same_bits(now[0], start[0]) and same(now[1:], start[1:])
        assert trial.model.calls == begin
        assert all(p.grad is None for p in trial.model.parameters())
    assert losses[0] == losses[1] == losses[2]
    for end in ends[1:]:
        assert same_bits(end[0], ends[0][0]) and same(end[1:], ends[0][1:])
    assert not same_bits(ends[0][0], start[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_in_weights_and_momentum_from_the_rewound_step_on(name: str) -> None:
    trial = build(OPTIMIZERS[name])
    train(trial, 0, 4)
    rewind, start = snapshot(trial), network()
    start.load_state_dict(trial.model.state_dict())
    train(trial, 4, 8)
    masks = prune(copy.deepcopy(trial.model), 0.6)
    rewind.restore_(masks)
    assert holds(masks, trial.model, trial.optimizer)
    for key, mask in masks.items():
        assert torch.equal(trial.model.get_parameter(key)[mask], start.get_parameter(key)[mask])
    with masks.attach(trial.model, trial.optimizer):
        train(trial, 4, 8)
        assert holds(masks, trial.model, trial.optimizer)


def test_rewinding_onto_what_does_not_fit_changes_nothing() -> None:
    trial = build()
    rewind = snapshot(trial)
    train(trial, 0, 2)
    before, random_state = frozen(trial), torch.get_rng_state()
    with pytest.raises(ValueError, match="shape"):
        rewind.restore_(Masks({"0.weight": torch.ones(2, 2, dtype=torch.bool)}))
    trial.model[7].weight = nn.Parameter(torch.zeros(4, 20))
    with pytest.raises(ValueError, match=r"change of '7\.weight'"):
        rewind.restore_()
    trial.model[7].weight = before[0][7].weight
    now = frozen(trial)
    assert same_bits(now[0], before[0]) and same(now[1:], before[1:])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_rewind_names_what_has_no_state() -> None:
    trial = build()
    with pytest.raises(TypeError, match="optimizer must be a torch"):
        Rewind(trial.model, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="others must be with state_dict"):
        Rewind(trial.model, trial.optimizer, 3)  # type: ignore[arg-type]


def test_tied_weights_rewind_as_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewind, start = Rewind(model, optimizer), model[0].weight.clone()
    with torch.no_grad():
        model[1].weight.zero_()
    rewind.restore_()
    assert model[0].weight is model[1].weight and torch.equal(model[1].weight, start)


# --- rounds


def run(**arguments: Any) -> list[Ticket]:
    given = {"build": build, "train": train, "steps": 6, "rounds": 3, **arguments}
    return list(lottery(**given))


@pytest.mark.parametrize("scope", ["global", "local"])
def test_sparsities_follow_the_rate(scope: str) -> None:
    """Of 54 + 1920 + 60 weights; each round prunes survivors only."""
    tickets = run(rounds=5, scope=scope)
    assert [t.round for t in tickets] == [0, 1, 2, 3, 4, 5]
    for ticket in tickets:
        asked = 1 - 0.8**ticket.round
        assert ticket.masks.sparsity() == pytest.approx(asked, abs=1e-3)
        for mask in ticket.masks.values():
            share = 1 - mask.float().mean().item()
            assert scope == "global" or share == pytest.approx(asked, abs=0.5 / mask.numel())
    for before, after in itertools.pairwise(tickets):
        for name, mask in after.masks.items():
            assert not (mask & ~before.masks[name]).any()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_output_layer_at_half_the_rate(scope: str) -> None:
    for ticket in run(scope=scope, output="7"):
        *rest, last = ticket.masks.values()
        assert list(ticket.masks) == ["0.weight", "4.weight", "7.weight"]
        assert Masks(dict(enumerate(rest))).sparsity() == pytest.approx(  # type: ignore[arg-type]
            1 - 0.8**ticket.round, abs=1e-3
        )
        assert 1 - last.float().mean() == pytest.approx(1 - 0.9**ticket.round, abs=0.5 / 60)


def test_masks_are_the_largest_weights_at_the_end_of_the_round_before() -> None:
    """By hand, for the first round, in scope "local"."""
    trial = build()
    tickets = lottery(lambda: trial, train, steps=6, rounds=1, rate=0.5, scope="local")
    next(tickets)
    trained = {n: p.detach().abs().clone() for n, p in trial.model.named_parameters()}
    ticket = next(tickets)
    for name, mask in ticket.masks.items():
        assert trained[name][mask].min() >= trained[name][~mask].max()
        assert torch.equal(ticket.scores[name], trained[name])
    assert holds(ticket.masks, trial.model)


@pytest.mark.parametrize("rewind_to", [0, 2])
def test_tickets_train_from_the_rewound_step(rewind_to: int) -> None:
    """Every training is seen to begin with the weights of step k, masked; k steps are made once."""
    calls: list[tuple[int, int]] = []
    starts: list[nn.Module] = []

    def watched(trial: Trial, begin: int, end: int) -> float:
        calls.append((begin, end))
        starts.append(copy.deepcopy(trial.model))
        assert trial.scheduler.last_epoch == begin
        return train(trial, begin, end)

    tickets = run(train=watched, rounds=2, rewind_to=rewind_to)
    assert calls == [(0, rewind_to), *[(rewind_to, 6)] * 3]
    for ticket, start in zip(tickets, starts[1:], strict=True):
        for name, mask in ticket.masks.items():
            expected = torch.where(mask, starts[1].get_parameter(name), 0)
            assert torch.equal(start.get_parameter(name), expected)
        assert torch.equal(start[1].running_mean, starts[1][1].running_mean)
    plain = build()
    train(plain, 0, rewind_to)
    assert tickets[0].metrics == train(plain, rewind_to, 6)  # round 0 is ordinary training


def test_the_same_every_time() -> None:
    first, second = run(rewind_to=1), run(rewind_to=1)
    assert [t.metrics for t in first] == [t.metrics for t in second]
    assert all(a.masks == b.masks for a, b in zip(first, second, strict=True))


def test_controls_leave_the_rounds_as_they_are() -> None:
    plain = run()
    generator = torch.Generator().manual_seed(0)
    seen = []
    for ticket in lottery(build, train, steps=6, rounds=3):
        assert ticket.train() == ticket.metrics  # repeated to the last bit
        seen.append(ticket)
        if ticket.round:
            assert ticket.train(shuffled(ticket.masks, generator)) != ticket.metrics
            assert ticket.train(inverted(ticket.masks, ticket.scores)) != ticket.metrics
            assert ticket.train(start=build(seed=0).model) == ticket.metrics  # the same draw
            assert ticket.train(start=build(seed=5).model) != ticket.metrics
    assert [t.metrics for t in seen] == [t.metrics for t in plain]
    assert all(a.masks == b.masks for a, b in zip(seen, plain, strict=True))


def test_other_weights_come_without_the_momentum_of_the_rewound_ones() -> None:
    momentum: list[int] = []

    def watched(trial: Trial, begin: int, end: int) -> float:
        momentum.append(len(trial.optimizer.state))
        return train(trial, begin, end)

    ticket = run(train=watched, rounds=1, rewind_to=2)[-1]
    ticket.train(start=build(seed=5).model)
    ticket.train()
    assert momentum == [0, 8, 8, 0, 8]


def test_random_pruning_as_a_criterion() -> None:
    tickets, ranked = run(criterion="random", scope="local"), run(scope="local")
    assert tickets[3].masks.sparsity() == ranked[3].masks.sparsity()
    assert tickets[3].masks != ranked[3].masks


BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps"),
    ({"rounds": 0}, "rounds"),
    ({"rewind_to": -1}, "rewind_to"),
    ({"rewind_to": 6}, "rewind_to"),
    ({"rate": 1.0}, "rate"),
    ({"scope": "layer"}, "scope"),
    ({"criterion": "magic"}, "criterion"),
    ({"output": "fc"}, "fc"),
    ({"ignore": "nothing"}, "ignore"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_arguments_before_the_first_training(arguments: dict[str, Any], named: str) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("trained")

    given = {"steps": 6, "rounds": 3, **arguments}
    with pytest.raises(ValueError, match=f"lottery.*{named}"):
        lottery(build, never, **given)


# --- controls


def masks() -> Masks:
    generator = torch.Generator().manual_seed(2)
    shapes = {"a": (6, 50), "b": (4, 3, 3, 3), "c": (5,)}
    return Masks({n: torch.rand(s, generator=generator) < 0.3 for n, s in shapes.items()})


def test_shuffled_keeps_the_count_of_every_layer() -> None:
    given = masks()
    turned = shuffled(given, torch.Generator().manual_seed(0))
    for name, mask in given.items():
        assert turned[name].shape == mask.shape and turned[name].sum() == mask.sum()
    assert not torch.equal(turned["a"], given["a"])
    assert turned == shuffled(given, torch.Generator().manual_seed(0))
    assert turned != shuffled(given, torch.Generator().manual_seed(1))


def test_shuffled_is_uniform() -> None:
    """Every place of ten is kept in 3 of 10 draws, within 5 standard errors of 4,000."""
    mask = Masks({"a": torch.arange(10) < 3})
    generator = torch.Generator().manual_seed(0)
    kept = sum(shuffled(mask, generator)["a"].double() for _ in range(4_000)) / 4_000
    assert (kept - 0.3).abs().max() < 5 * (0.3 * 0.7 / 4_000) ** 0.5


def test_inverted_keeps_as_many_of_the_lowest() -> None:
    score = torch.tensor([[4.0, 1.0, 3.0], [2.0, 6.0, 5.0]])
    top = Masks({"a": score > 4})
    expected = torch.tensor([[False, True, False], [True, False, False]])
    assert inverted(top, {"a": score}) == Masks({"a": expected})
    assert torch.equal(inverted(top, {"a": torch.zeros(2, 3)})["a"].flatten(), torch.arange(6) < 2)
    for scores in ({}, {"a": torch.ones(6)}):
        with pytest.raises(ValueError, match="inverted: scores must be"):
            inverted(top, scores)


@pytest.mark.slow
def test_tickets_beat_their_controls() -> None:
    """Digits, a 64-300-100-10 network with 3.5 % of its weights: as in the paper's figure 3."""
    from sparseprune.data import digits

    data = digits()

    def build(seed: int = 0) -> Trial:
        torch.manual_seed(seed)
        sizes = ((64, 300), (300, 100), (100, 10))
        layers = [part for a, b in sizes for part in (nn.Linear(a, b), nn.ReLU())][:-1]
        model = nn.Sequential(nn.Flatten(), *layers)
        return Trial(model, torch.optim.Adam(model.parameters(), 1.2e-3))

    def train(trial: Trial, begin: int, end: int) -> float:
        for step in range(begin, end):
            chosen = torch.randint(
                len(data.y_train), (60,), generator=torch.Generator().manual_seed(step)
            )
            trial.optimizer.zero_grad()
            output = trial.model(data.x_train[chosen])
            nn.functional.cross_entropy(output, data.y_train[chosen]).backward()
            trial.optimizer.step()
        with torch.no_grad():
            right = trial.model(data.x_test).argmax(1) == data.y_test
        return right.float().mean().item()

    tickets = list(lottery(build, train, steps=300, rounds=15, scope="local", output=str(5)))
    ticket, dense = tickets[-1], tickets[0]
    generator = torch.Generator().manual_seed(0)
    turned = ticket.train(shuffled(ticket.masks, generator))
    fresh = ticket.train(start=build(seed=1).model)
    assert ticket.masks.sparsity() > 0.95
    assert ticket.metrics > dense.metrics - 0.02
    assert ticket.metrics > max(turned, fresh) + 0.01
