"""What all methods keep to: hooks, AMP, accumulation, closures, frozen and tied weights, errors."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from method_cases import METHODS, OPTIMIZERS, batch, hooks, net, train
from torch import Tensor, nn

from sparseprune.training import L1, GroupLasso, Lobster, Method, SensitivityDecay, Serene, Slimming

every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
every_optimizer = pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@every_method
def test_finalize_leaves_an_ordinary_model(make: Callable[[], Method]) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    keys = list(model.state_dict())
    method = make().prepare(model, optimizer)
    assert hooks(model, optimizer) >= 2
    train(model, optimizer, method)
    assert list(model.state_dict()) == keys
    masks = method.finalize()
    assert hooks(model, optimizer) == 0
    assert list(model.state_dict()) == keys
    assert set(masks) == {f"{i}.weight" for i in (0, 4, 6, 10)}
    assert all(torch.equal(mask, model.get_parameter(n) != 0) for n, mask in masks.items())
    train(model, optimizer, make().prepare(model, optimizer), 1)  # nothing is left behind


@every_method
def test_copies_and_pickles_of_a_model_in_training_are_ordinary(make: Callable[[], Method]) -> None:
    model, twin = net(), net()
    optimizer, lone = (OPTIMIZERS["sgd"](m.parameters()) for m in (model, twin))
    method, other = make().prepare(model, optimizer), make().prepare(twin, lone)
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for ordinary in (copied, loaded):
        watching = [h for m in ordinary.modules() for h in m._forward_hooks.values()]
        assert all(hook.act is None for hook in watching)
        ordinary(batch(5)[0]).sum().backward()  # would be measured, if it were still watched
        assert ordinary[0].weight.grad is not None
    train(model, optimizer, method)
    train(twin, lone, other)
    assert same(model, twin)


@every_optimizer
@every_method
def test_grad_scaler_changes_nothing(
    make: Callable[[], Method], optimize: Callable[..., torch.optim.Optimizer]
) -> None:
    """A scale that is a power of two scales exactly; fused optimizers see scaled gradients."""
    plain, scaled = net(), net()
    optimizer = optimize(plain.parameters())
    train(plain, optimizer, make().prepare(plain, optimizer))
    optimizer = optimize(scaled.parameters())
    method = make().prepare(scaled, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(scaled(x), y) + method.penalty()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert same(plain, scaled)


@every_optimizer
@every_method
def test_a_step_that_the_scaler_skips_is_none(
    make: Callable[[], Method], optimize: Callable[..., torch.optim.Optimizer]
) -> None:
    model = net()
    optimizer = optimize(model.parameters())
    method = make().prepare(model, optimizer)
    before = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch(0)
    loss = nn.functional.cross_entropy(model(x), y) + method.penalty()
    scaler.scale(loss * torch.inf).backward()
    scaler.step(optimizer)
    assert same(model, before)


ACCUMULATING = {n: make for n, make in METHODS.items() if not n.startswith(("sens", "serene"))}


@pytest.mark.parametrize("make", ACCUMULATING.values(), ids=ACCUMULATING)
def test_accumulated_gradients_are_one_step(make: Callable[[], Method]) -> None:
    """Those left out average their sensitivities over the parts, see test_sensitivities."""
    whole, parts = net().double().eval(), net().double().eval()  # batch norm would see the parts
    for model, splits in ((whole, 1), (parts, 2)):
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        method = make().prepare(model, optimizer)
        x, y = batch(0)
        for xs, ys in zip(x.double().chunk(splits), y.chunk(splits), strict=True):
            loss = nn.functional.cross_entropy(model(xs), ys) + method.penalty()
            (loss / splits).backward()
        optimizer.step()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@every_method
def test_a_closure_is_a_step_like_any_other(make: Callable[[], Method]) -> None:
    plain, closed = net(), net()
    optimizer = OPTIMIZERS["adamw"](plain.parameters())
    train(plain, optimizer, make().prepare(plain, optimizer))
    optimizer = OPTIMIZERS["adamw"](closed.parameters())
    method = make().prepare(closed, optimizer)
    for step in range(3):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(closed(x), y) + method.penalty()
            loss.backward()
            return loss

        value = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert value.isfinite()
    assert same(plain, closed)


@every_method
def test_frozen_layers_stay_as_they_are(make: Callable[[], Method]) -> None:
    model = net()
    model[1].requires_grad_(False)
    model[4].requires_grad_(False)
    before = copy.deepcopy(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = make().prepare(model, optimizer)
    train(model, optimizer, method)
    for i in (1, 4):
        assert same(model[i], before[i])
    assert not same(model[10], before[10])


@every_method
def test_ignored_layers_train_as_without_the_method(make: Callable[[], Method]) -> None:
    model, plain = net(), net()
    optimizer, lone = (OPTIMIZERS["sgd"](m.parameters()) for m in (model, plain))
    method = make()
    method.ignore = (nn.Linear, nn.Conv2d) if not isinstance(method, Slimming) else ("1",)
    with pytest.raises(ValueError, match="ignore"):  # everything ignored
        method.prepare(model, optimizer)
    assert hooks(model, optimizer) == 0
    if isinstance(method, Slimming):
        return
    method.ignore = ("re:(0|4|6)$",)
    method.prepare(model, optimizer)
    x, y = batch(0)
    for net_, opt, penalty in ((model, optimizer, method.penalty()), (plain, lone, 0)):
        (nn.functional.cross_entropy(net_(x), y) + penalty).backward()
        opt.step()
    assert all(same(model[i], plain[i]) for i in (0, 4, 6, 8))
    assert not torch.equal(model[10].weight, plain[10].weight)


def test_the_model_inside_data_parallel_is_taken() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = L1(1e-2).prepare(nn.DataParallel(model), optimizer)
    assert set(method.finalize()) == {f"{i}.weight" for i in (0, 4, 6, 10)}


@every_method
def test_errors_come_before_any_change(make: Callable[[], Method]) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = make()
    for call in (method.penalty, method.finalize):
        with pytest.raises(ValueError, match="must be prepared, got one that is not"):
            call()
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got list"):
        method.prepare(model, list(model.parameters()))
    partial = torch.optim.SGD(model[4].parameters(), 0.1)
    with pytest.raises(ValueError, match="optimizer must be over all"):
        method.prepare(model, partial)
    with pytest.raises(ValueError, match="model must be one with"):
        method.prepare(nn.ReLU(), optimizer)
    assert hooks(model, optimizer) == hooks(model, partial) == 0
    method.prepare(model, optimizer)
    count = hooks(model, optimizer)
    with pytest.raises(ValueError, match="prepared once, got a second call"):
        method.prepare(model, optimizer)
    assert hooks(model, optimizer) == count


@pytest.mark.parametrize("kind", [L1, GroupLasso, Lobster, SensitivityDecay, Serene, Slimming])
def test_a_strength_must_be_a_finite_number(kind: Callable[[object], Method]) -> None:
    for wrong in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength must be"):
            kind(wrong)
    for wrong in (True, "1e-3", None):
        with pytest.raises(TypeError, match="strength must be"):
            kind(wrong)
    if issubclass(kind, (Lobster, SensitivityDecay, Serene)):  # it would change the sign
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            kind(1.1)


def test_methods_share_a_model() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    filters = GroupLasso(0.7, "filter", proximal=True).prepare(model, optimizer)
    channels = GroupLasso(0.7, "channel", proximal=True).prepare(model, optimizer)
    train(model, optimizer, filters)
    masks = channels.finalize()
    assert masks == filters.finalize()
    linear = torch.cat([masks[f"{i}.weight"].flatten() for i in (4, 6, 10)])
    assert 0 < linear.float().mean() < 1
    empty = {"rows": 0, "columns": 0}
    for mask in (masks[f"{i}.weight"] for i in (4, 6, 10)):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        empty["rows"] += int((~rows).sum())
        empty["columns"] += int((~columns).sum())
    assert all(empty.values())
    assert hooks(model, optimizer) == 0
