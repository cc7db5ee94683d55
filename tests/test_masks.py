"""Masks: bookkeeping, files, and zeros that stay zero through training."""

from __future__ import annotations

import copy
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune.masks import Masks
from sparseprune.prune import prune


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator)
    return x, torch.randint(3, (16,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def holds(masks: Masks, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> bool:
    """Masked weights, and the optimizer's state of them, are exactly +0.0; kept ones live."""
    for name, mask in masks.items():
        parameter = dict(model.named_parameters(remove_duplicate=False))[name]
        state = optimizer.state[parameter].values() if optimizer else ()
        for value in [parameter, *(v for v in state if v.shape == mask.shape)]:
            dropped = value.detach()[~mask]
            if dropped.any() or torch.signbit(dropped).any():
                return False
        if not parameter.detach()[mask].any():
            return False
    return True


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}


# --- bookkeeping


def by_hand() -> Masks:
    return Masks(
        {
            "a.weight": torch.tensor([[True, False, False, False]]),
            "b.weight": torch.tensor([True, False]),
        }
    )


def test_mapping_and_numbers_by_hand() -> None:
    masks = by_hand()
    assert list(masks) == ["a.weight", "b.weight"] and len(masks) == 2
    assert "a.weight" in masks and masks.get("c") is None
    assert masks.sparsity() == pytest.approx(4 / 6) and masks.compression() == pytest.approx(3)
    assert repr(masks) == "Masks(2 tensors, 6 weights, sparsity 0.6667)"


def test_numbers_of_nothing() -> None:
    assert Masks({}).sparsity() == 0.0 and Masks({}).compression() == 1.0
    none = Masks({"a": torch.zeros(3, dtype=torch.bool)})
    assert none.sparsity() == 1.0 and none.compression() == float("inf")
    assert "0.00%" in Masks({}).summary()


def test_summary_has_a_row_per_layer_and_a_total() -> None:
    lines = prune(net(), 0.5, scope="local").summary().splitlines()
    rows = [line.split() for line in lines if "%" in line]
    assert rows[0] == ["0.weight", "8", "x", "6", "24", "48", "50.00%"]
    assert rows[-1] == ["total", "68", "136", "50.00%"] and len(rows) == 4


def test_summary_shows_long_and_odd_names_whole() -> None:
    name = "[red]" + "layer." * 40 + "weight"
    assert name in Masks({name: torch.ones(2, dtype=torch.bool)}).summary()


def test_equality_is_by_name_and_bits() -> None:
    assert by_hand() == by_hand() and by_hand() != Masks({}) and by_hand() != 3
    other = Masks({**by_hand(), "b.weight": torch.tensor([True, True])})
    assert other != by_hand()


@pytest.mark.parametrize("mask", [torch.ones(2), [True], torch.ones(2, dtype=torch.uint8)])
def test_only_bool_tensors(mask: object) -> None:
    with pytest.raises(TypeError, match=r"Masks: mask 'w' must be a bool tensor.*pass mask != 0"):
        Masks({"w": mask})


# --- apply_


def test_apply_zeroes_without_negative_zero() -> None:
    masks = prune(net(), 0.6)
    model = net(1)
    for parameter in model.parameters():
        parameter.data.neg_()
    masks.apply_(model)
    assert holds(masks, model)


def test_apply_overwrites_nan() -> None:
    model = nn.Linear(2, 1)
    model.weight.data.fill_(float("nan"))
    Masks({"weight": torch.tensor([[False, False]])}).apply_(model)
    assert model.weight.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"2.weigth": torch.zeros(8, 8, dtype=torch.bool)},
            "apply_: masks must be of parameters that the model has, got '2.weigth'; did you mean "
            "'2.weight'",
        ),
        (
            {"2.weight": torch.zeros(8, 7, dtype=torch.bool)},
            "apply_: mask '2.weight' must be of the parameter's shape (8, 8), got (8, 7); use the",
        ),
    ],
    ids=["name", "shape"],
)
def test_apply_checks_all_before_it_changes_any(
    masks: dict[str, torch.Tensor], message: str
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks({"0.weight": torch.zeros(8, 6, dtype=torch.bool), **masks}).apply_(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


# --- from_model


def test_from_model_reads_exact_zeros() -> None:
    model = net()
    masks = prune(model, 0.5)
    model[0].weight.data[~masks["0.weight"]] = -0.0
    assert Masks.from_model(model) == masks
    assert list(Masks.from_model(model, ignore=["2"])) == ["0.weight", "4.weight"]


def test_from_model_reads_torch_prune() -> None:
    model = net()
    torch_prune.random_unstructured(model[2], "weight", 0.5)
    expected = model[2].weight_mask.bool()
    with torch.no_grad():
        model[2].weight_orig.add_(1)  # the attribute `weight` is stale until the next forward
    masks = Masks.from_model(model)
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]
    assert torch.equal(masks["2.weight"], expected) and masks["0.weight"].all()
    torch_prune.remove(model[2], "weight")
    masks.apply_(model)
    assert Masks.from_model(model) == masks


def test_from_model_refuses_other_hooks_by_name() -> None:
    model = net()
    parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match=r"Masks\.from_model: weight '2\.weight' must be a plain"):
        Masks.from_model(model)


# --- files


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4),
    seed=st.integers(0, 999),
)
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {f"z{-i}.weight": torch.rand(s, generator=generator) < 0.3 for i, s in enumerate(shapes)}
    )
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded == masks and list(loaded) == list(masks)
    assert [m.shape for m in loaded.values()] == [m.shape for m in masks.values()]


def test_a_file_is_one_bit_per_weight_and_repeatable(tmp_path: Path) -> None:
    masks = Masks({"w": torch.rand(1000, 80) < 0.5})
    masks.save(str(tmp_path / "a"))
    masks.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert 10_000 < (tmp_path / "a").stat().st_size < 10_300
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "masks.safetensors"
    prune(net(), 0.5).save(path)
    return path


def unreadable(path: Path) -> None:
    with pytest.raises(ValueError, match=rf"Masks\.load: file {str(path)!r} must be whole, by"):
        Masks.load(path)


def test_truncated_anywhere(saved: Path) -> None:
    content = saved.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, *range(len(content) - 20, len(content))]:
        saved.write_bytes(content[:size])
        unreadable(saved)


def test_every_flipped_bit_of_the_masks_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(len(content) - 17, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            saved.write_bytes(damaged)
            unreadable(saved)


def test_changed_shape_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    assert b"[8, 6]" in content
    saved.write_bytes(content.replace(b"[8, 6]", b"[6, 8]"))
    unreadable(saved)


@pytest.mark.parametrize(
    "content", [b"", b"not a mask file", pickle.dumps({"w": 1}), bytes(4096)], ids=len
)
def test_foreign_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    unreadable(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"sparseprune.masks.v1": "[]"[:1]}):
        save_file({"w": np.zeros(3, np.uint8)}, path, metadata)
        unreadable(path)


def test_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "none")


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_interrupted_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    before = saved.read_bytes()
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="disk full"):
        prune(net(), 0.9, scope="local").save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


# --- attach: zeros stay zero through training (trap 1)


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


def test_a_meta_model_is_refused_and_the_masks_keep_their_values() -> None:
    masks = prune(net(), 0.5)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' must be in memory, got a meta"):
        masks.apply_(net().to("meta"))
    assert masks == prune(net(), 0.5)


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
