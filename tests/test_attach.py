"""attach: zeros stay zero through training (trap 1)."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from masked_training import OPTIMIZERS, batch, holds, net, train
from torch import nn

from sparseprune.masks import Masks
from sparseprune.prune import prune


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_survive_training(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(5))  # dense steps first, so that momentum is alive
    masks = prune(model, 0.7)
    with masks.attach(model, optimizer):
        assert holds(masks, model, optimizer)
        for step in range(5, 105):
            train(model, optimizer, range(step, step + 1))
            assert holds(masks, model, optimizer)
    assert Masks.from_model(model) == masks


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_without_attach_zeros_are_revived(name: str) -> None:
    """The trap itself, so that the test above means something."""
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(5))
    masks = prune(model, 0.7)
    train(model, optimizer, range(5, 6))
    assert not holds(masks, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_amp_with_skipped_steps_and_accumulation(dtype: torch.dtype) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = prune(model, 0.6).attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    skipped = 0
    for step in range(12):
        for part in range(2):
            x, y = batch(2 * step + part)
            with torch.autocast("cpu", dtype):
                loss = nn.functional.cross_entropy(model(x).float(), y) / 2
            scaler.scale(loss).backward()
        if step % 4 == 1:
            model[0].weight.grad[0, 0] = float("inf")
        before = model[2].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        skipped += torch.equal(before, model[2].weight)
        optimizer.zero_grad()
        assert holds(masks, model)
    assert skipped == 3


def test_bfloat16_weights() -> None:
    model = net().to(torch.bfloat16)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    masks = prune(model, 0.6).attach(model, optimizer)
    for step in range(5):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
        assert holds(masks, model, optimizer)


def test_masking_changes_no_kept_weight() -> None:
    """One SGD step: kept weights move exactly as they would without masks."""
    models = net(), net()
    masks = prune(models[0], 0.5)
    masks.apply_(models[1])
    for index, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if index:
            masks.attach(model, optimizer)
        train(model, optimizer, range(1))
    for name, mask in masks.items():
        free, held = (model.get_parameter(name) for model in models)
        assert torch.equal(free[mask], held[mask]) and not torch.equal(free, held)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_resume_is_bit_equal(tmp_path: Path, name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    masks = prune(model, 0.7).attach(model, optimizer)
    train(model, optimizer, range(10))
    masks.save(tmp_path / "masks")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c")
    train(model, optimizer, range(10, 20))

    fresh = net(7)
    again = OPTIMIZERS[name](fresh.parameters())
    checkpoint = torch.load(tmp_path / "c", weights_only=True)
    fresh.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["optimizer"])
    loaded = Masks.load(tmp_path / "masks").attach(fresh, again)
    train(fresh, again, range(10, 20))
    assert loaded == masks
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        for key, value in optimizer.state[old].items():
            assert value is None or torch.equal(value, again.state[new][key])


@pytest.mark.parametrize("assign", [False, True])
def test_loading_a_dense_checkpoint_is_masked(assign: bool) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.5).attach(model, optimizer)
    model.load_state_dict(net(3).state_dict(), assign=assign)
    assert holds(masks, model)
    masks.detach()
    model.load_state_dict(net(3).state_dict(), assign=assign)
    assert not holds(masks, model)


def test_tied_weights_are_masked_once() -> None:
    """Trap 5."""
    model = net()
    model[4] = nn.Linear(8, 8)
    model[4].weight = model[2].weight
    optimizer = OPTIMIZERS["adam"](model.parameters())
    masks = prune(model, 0.5).attach(model, optimizer)
    assert list(masks) == ["0.weight", "2.weight"]
    for _ in range(3):
        model(batch(0)[0]).square().sum().backward()
        optimizer.step()
    assert holds(masks, model, optimizer) and model[4].weight is model[2].weight
    Masks({"4.weight": masks["2.weight"]}).apply_(model)  # a later alias is a valid name too


def test_copies_of_an_attached_model_are_free() -> None:
    """Trap 9: deepcopy and pickle work, and a copy obeys neither masks nor optimizer."""
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = prune(model, 0.5).attach(model, optimizer)
    train(model, optimizer, range(2))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        frozen = copy.deepcopy(twin.state_dict())
        assert holds(masks, twin)
        train(model, optimizer, range(2, 4))
        assert all(torch.equal(v, frozen[n]) for n, v in twin.state_dict().items())
        twin.load_state_dict(net(3).state_dict())
        assert not holds(masks, twin)
        own = OPTIMIZERS["adamw"](twin.parameters())
        with masks_copy(masks).attach(twin, own):
            train(twin, own, range(3))
        assert holds(masks, twin)
    assert holds(masks, model, optimizer)


def masks_copy(masks: Masks) -> Masks:
    twin = copy.deepcopy(masks)
    assert twin == masks and twin["0.weight"] is not masks["0.weight"]
    return twin


def test_frozen_layers_need_no_optimizer() -> None:
    """Trap 15: only the head trains."""
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad])
    masks = prune(model, 0.5).attach(model, optimizer)
    train(model, optimizer, range(3))
    assert holds(masks, model)


def test_masks_and_optimizer_state_are_not_grown() -> None:
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    prune(model, 0.5).attach(model, optimizer)
    assert len(optimizer.state) == 0


def test_two_masks_one_after_the_other() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for sparsity in (0.3, 0.6, 0.8):
        masks = prune(model, sparsity)
        with masks.attach(model, optimizer):
            train(model, optimizer, range(4))
        assert Masks.from_model(model).sparsity() == pytest.approx(sparsity, abs=0.01)


def test_detach_ends_it_and_may_be_called_twice() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.5).attach(model, optimizer)
    masks.detach()
    masks.detach()
    train(model, optimizer, range(2))
    assert not holds(masks, model)
    masks.attach(model, optimizer)
    assert holds(masks, model, optimizer)


def test_attach_errors_change_nothing() -> None:
    model = net()
    masks = prune(net(), 0.5)
    before = copy.deepcopy(model.state_dict())
    head = torch.optim.SGD(model[4].parameters(), 0.1)
    for wrong in (head, torch.optim.SGD(net().parameters(), 0.1)):
        with pytest.raises(ValueError, match=r"attach: optimizer must be over all masked weights"):
            masks.attach(model, wrong)
    with pytest.raises(ValueError, match=r"attach: masks must be of parameters that the model has"):
        masks.attach(model[0], head)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks.attach(model, optimizer)
    with pytest.raises(ValueError, match=r"attach: masks must be attached once.*detach\(\) first"):
        masks.attach(model, optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_follow_the_device_and_are_the_same_there() -> None:
    model = net()
    masks = prune(model, 0.5)
    assert prune(net().cuda(), 0.5) == masks
    optimizer = OPTIMIZERS["adamw"](model.cuda().parameters())
    masks.attach(model, optimizer)
    model(batch(0)[0].cuda()).square().sum().backward()
    optimizer.step()
    assert holds(masks, model, optimizer)
    assert all(mask.is_cuda for mask in masks.values())


def test_scheduler_and_closure_steps() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.5).attach(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
        schedule.step()
        assert holds(masks, model, optimizer)
