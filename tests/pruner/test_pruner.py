"""Pruner in a plain loop: what it prunes and when, resume, AMP, accumulation, tied and frozen."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked_training import OPTIMIZERS, batch, holds, net, train
from torch import nn

from sparseprune import Masks, prune
from sparseprune.patterns import resolve
from sparseprune.pruning import Pruner
from sparseprune.schedules import Schedule, rigl, set_evolution

PLAN = Schedule(begin=4, end=20, frequency=3)


def run(pruner: Pruner, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        train(model, optimizer, range(step, step + 1))
        pruner.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS["sgd"](model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparsity_follows_the_schedule(name: str) -> None:
    """Trap 1: and nothing is revived in between."""
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = Pruner(0.8, PLAN).prepare(model, optimizer)
    for step in range(1, 31):
        before = pruner.masks
        train(model, optimizer, range(step, step + 1))
        assert pruner.step() == PLAN.due(step) or step == 4  # at 4 the curve is still at zero
        assert pruner.masks.sparsity() == pytest.approx(
            PLAN.sparsity(max(s for s in range(step + 1) if PLAN.due(s) or s == 0), 0.8), abs=0.004
        )
        assert all(not (pruner.masks[n] & ~before[n]).any() for n in before)  # never regrown
        if step >= 7:
            assert holds(pruner.masks, model, optimizer)
    masks = pruner.finalize()
    assert Masks.from_model(model) == masks and masks.sparsity() == pytest.approx(0.8, abs=0.004)
    train(model, optimizer, range(3))
    assert not holds(masks, model)  # the model is free again


def test_default_prunes_everything_in_prepare_as_prune_does() -> None:
    model = net()
    pruner = Pruner(0.6).prepare(model, sgd(model))
    assert pruner.masks == prune(net(), 0.6)
    run(pruner, model, pruner._optimizer, range(5))
    assert holds(pruner.finalize(), model)


@pytest.mark.parametrize("pattern", ["filter", "block(2,2)", "2:4", "kernel"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_every_update_is_legal(pattern: str, scope: str) -> None:
    model = net()
    optimizer = sgd(model)
    plan = Schedule(0, 6, 2, "linear", initial=0.5)
    pruner = Pruner(0.75, plan, scope=scope, pattern=pattern).prepare(model, optimizer)
    for step in range(8):
        for mask in pruner.masks.values():  # a legal mask is its own best mask
            share = 1 - mask.float().mean().item()
            again = resolve(pattern).mask(
                mask.float(), max(0.5, share) if ":" in pattern else share
            )
            assert torch.equal(again, mask)
        run(pruner, model, optimizer, range(step, step + 1))


def test_sparsity_per_layer() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = Pruner({"0": 0.5, "2.weight": 0.75}, Schedule(0, 4, 2, "linear"))
    pruner.prepare(model, optimizer)
    run(pruner, model, optimizer, range(2))
    assert [round(1 - m.float().mean().item(), 3) for m in pruner.masks.values()] == [0.25, 0.375]
    run(pruner, model, optimizer, range(2, 4))
    assert list(pruner.finalize()) == ["0.weight", "2.weight"]
    assert model[4].weight.all()


# --- resume


RULES: dict[str, dict[str, Any]] = {
    "gradual": {},
    "rigl": {"schedule": Schedule(), "regrowth": rigl(end=30, frequency=4)},
    "set": {"schedule": Schedule(), "regrowth": set_evolution(end=30, frequency=4, seed=3)},
    "both": {"regrowth": rigl(end=30, frequency=2)},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("pruner_first", [False, True])
def test_resume_mid_schedule_is_bit_equal(rule: str, name: str, pruner_first: bool) -> None:
    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        model = net(seed)
        optimizer = OPTIMIZERS[name](model.parameters())
        pruner = Pruner(0.8, **{"schedule": PLAN, **RULES[rule]})
        return model, optimizer, pruner

    model, optimizer, pruner = fresh(0)
    pruner.prepare(model, optimizer)
    run(pruner, model, optimizer, range(11))
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in (model, optimizer, pruner)], file)
    run(pruner, model, optimizer, range(11, 25))

    twin, again, resumed = fresh(7)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    parts = [(twin, states[0]), (again, states[1])]
    if pruner_first:  # prepare on the fresh model, then everything is loaded
        resumed.prepare(twin, again)
        parts.insert(0, (resumed, states[2]))
    for thing, state in parts:
        thing.load_state_dict(state)
    if not pruner_first:  # prepare on the loaded model must not prune it further
        resumed.prepare(twin, again)
        resumed.load_state_dict(states[2])
    run(resumed, twin, again, range(11, 25))
    assert resumed.masks == pruner.masks and resumed.steps == pruner.steps
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])


def test_a_foreign_state_is_refused() -> None:
    model = net()
    pruner = Pruner(0.5).prepare(model, sgd(model))
    for state in ({}, {"steps": 3, "masks": {"0.weight": torch.ones(8, 6, dtype=torch.bool)}}):
        with pytest.raises(ValueError, match=r"load_state_dict: state must be one with masks of 0"):
            pruner.load_state_dict(state)
    assert pruner.steps == 0 and pruner.masks.sparsity() == 0.5


# --- mixed precision, accumulation, tied, frozen, compiled (traps 5 and 15)


@pytest.mark.parametrize("rule", ["gradual", "rigl"])
def test_amp_with_skipped_steps_and_accumulation(rule: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(0.7, **{"schedule": Schedule(0, 8, 2), **RULES[rule]})
    pruner.prepare(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(16):
        for part in range(2):
            x, y = batch(2 * step + part)
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x).float(), y) / 2
            scaler.scale(loss).backward()
        if step % 4 == 3:  # steps 4, 8, ...: RigL is due with gradients that overflowed
            model[0].weight.grad[0, 0] = float("inf")
        before = pruner.masks
        scaler.step(optimizer)
        scaler.update()
        moved = pruner.step()
        assert not (rule == "rigl" and step % 4 == 3 and (moved or pruner.masks != before))
        optimizer.zero_grad()
        assert holds(pruner.masks, model)
    assert pruner.masks.sparsity() == pytest.approx(0.7, abs=0.004)


@pytest.mark.parametrize("rule", RULES)
def test_tied_weights_have_one_mask(rule: str) -> None:
    """Trap 5."""
    model = net()
    model[4] = nn.Linear(8, 8)
    model[4].weight = model[2].weight
    optimizer = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(0.5, **{"schedule": Schedule(0, 4, 2), **RULES[rule]})
    pruner.prepare(model, optimizer)
    run(pruner, model, optimizer, range(9))
    assert list(pruner.masks) == ["0.weight", "2.weight"] and model[4].weight is model[2].weight
    assert holds(pruner.masks, model, optimizer)


@pytest.mark.parametrize("rule", RULES)
def test_frozen_layers_are_pruned_but_do_not_move(rule: str) -> None:
    """Trap 15."""
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad])
    pruner = Pruner(0.5, **{"schedule": Schedule(), **RULES[rule]}, scope="local")
    pruner.prepare(model, optimizer)
    first = prune(net(), 0.5, scope="local")["0.weight"]
    run(pruner, model, optimizer, range(25))
    assert torch.equal(pruner.masks["0.weight"], first)
    assert holds(pruner.finalize(), model)


def test_compiled_and_copied_models() -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    optimizer = sgd(model)
    pruner = Pruner(0.5, Schedule(0, 4, 2)).prepare(compiled, optimizer)
    run(pruner, compiled, optimizer, range(5))
    assert list(pruner.masks) == ["0.weight", "2.weight", "4.weight"]
    copy.deepcopy(model)  # trap 9
    assert holds(pruner.finalize(), model)


def test_a_dense_checkpoint_loaded_mid_schedule_is_masked() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = Pruner(0.5).prepare(model, optimizer)
    model.load_state_dict(net(3).state_dict())
    assert holds(pruner.masks, model)


# --- the order of calls, and bad input


def misuse_twice(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    Pruner(0.5, PLAN).prepare(model, optimizer).prepare(model, optimizer)


MISUSES: list[tuple[Callable[..., object], str]] = [
    (lambda m, o: Pruner(0.5).step(), "Pruner.step: the pruner must be prepared, got one that is"),
    (lambda m, o: Pruner(0.5).finalize(), "Pruner.finalize: the pruner must be prepared"),
    (lambda m, o: Pruner(0.5).load_state_dict({}), "Pruner.load_state_dict: the pruner must be"),
    (misuse_twice, "Pruner.prepare: the pruner must be prepared once"),
    (lambda m, o: Pruner(1.5).prepare(m, o), r"Pruner.prepare: sparsity must be a number in \[0"),
    (lambda m, o: Pruner(0.5, criterion="q").prepare(m, o), "criterion must be a known name"),
    (lambda m, o: Pruner(0.5, pattern="q"), "Pruner: pattern must be a known name"),
    (lambda m, o: Pruner(0.5, ignore=["q"]).prepare(m, o), "ignore must be names that the model"),
    (
        lambda m, o: Pruner(0.5, PLAN, pattern="2:4").prepare(m, o),
        r"Pruner.prepare: prune: sparsity must be at least 0.5 with pattern '2:4'.*initial=",
    ),
    (
        lambda m, o: Pruner(0.5, pattern="2:4", regrowth=rigl(9)),
        "Pruner: pattern must be 'unstructured' with regrowth, got '2:4'",
    ),
    (
        lambda m, o: Pruner(0.5, PLAN).prepare(m, sgd(m[4])),
        "attach: optimizer must be over all masked weights, got no '0.weight'",
    ),
]


@pytest.mark.parametrize("place", range(len(MISUSES)))
def test_misuse_is_named_and_changes_nothing(place: int) -> None:
    action, message = MISUSES[place]
    model = net()
    with pytest.raises(ValueError, match=message):
        action(model, sgd(model))
    assert all(torch.equal(v, net().state_dict()[n]) for n, v in model.state_dict().items())


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="schedule must be a Schedule, got 'cubic'"):
        Pruner(0.5, "cubic")
    with pytest.raises(TypeError, match="regrowth must be a Regrowth, got 'rigl'"):
        Pruner(0.5, regrowth="rigl")


def test_after_a_refused_prepare_the_pruner_can_be_used() -> None:
    model = net()
    pruner = Pruner(0.5, criterion=lambda w: w / 0 * 0)
    with pytest.raises(ValueError, match="free of NaN"):
        pruner.prepare(model, sgd(model))
    pruner.criterion = "magnitude"
    assert pruner.prepare(model, sgd(model)).finalize().sparsity() == 0.5


def test_finalize_says_that_the_schedule_had_not_ended() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = Pruner(0.5, PLAN).prepare(model, optimizer)
    run(pruner, model, optimizer, range(10))
    with pytest.warns(UserWarning, match=r"finalize: step 10 of 20; the sparsity is 0\.") as record:
        pruner.finalize()
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(0.5).prepare(model, optimizer).finalize()
