"""Traps of pruning that no other test of this folder covers, and masks that come from elsewhere."""

from __future__ import annotations

import io

import pytest
import torch
from masked_training import OPTIMIZERS, batch, holds, net, train
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparseprune import Masks, Pruner, convert, prune, zoo
from sparseprune.schedules import Schedule

# --- traps


@pytest.mark.parametrize("channels", [13, 31, 57])
def test_odd_channel_counts_need_no_rounding(channels: int) -> None:
    """Trap 10: what removal of channels leaves is packed as it is, and tails are exact."""
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels + 4, 3)
    )
    prune(model, 0.7)
    x = torch.randn(2, 3, 9, 11)
    fast = convert(model.eval(), x, keep_dense="never")
    assert [row.kernel != "dense" for row in fast.report.rows] == [True, True]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_pruned_state_loads_into_a_fresh_model_without_pickle() -> None:
    """Traps 2 and 3: weights_only, and the masks are in the zeros."""
    model = net()
    pruner = Pruner(0.7).prepare(model, OPTIMIZERS["sgd"](model.parameters()))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    fresh = net(5)
    fresh.load_state_dict(torch.load(file, weights_only=True)["model"])
    assert Masks.from_model(fresh) == pruner.masks


def test_quantising_needs_its_zeros_back() -> None:
    """Trap 12: symmetric scales keep zeros, others do not until the masks are applied again."""
    model = net()
    masks = prune(model, 0.7)
    for name in masks:
        weight = model.get_parameter(name)
        symmetric = torch.fake_quantize_per_tensor_affine(weight, 0.01, 0, -128, 127)
        assert not symmetric[~masks[name]].any()
        low, scale = weight.min(), (weight.max() - weight.min()) / 15
        weight.data = ((weight - low) / scale).round() * scale + low
    assert not holds(masks, model)
    masks.apply_(model)
    assert holds(masks, model)


def test_export_does_not_change_weights_in_training() -> None:
    """Trap 13."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(0.5).prepare(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported = torch.export.export(model, (batch(0)[0],)).module()
    assert torch.equal(exported(batch(0)[0]), model(batch(0)[0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, optimizer, range(3))
    assert holds(pruner.masks, model, optimizer)


def test_subnormal_weights_go_first_and_to_exact_zero() -> None:
    """Trap 16: what heavy decay leaves between zero and the smallest normal number."""
    model = net()
    tiny = torch.rand(model[2].weight.shape) < 0.5
    model[2].weight.data[tiny] = 1e-40
    masks = prune(model, tiny.sum().item() / 136)
    assert not masks["2.weight"][tiny].any() and not model[2].weight[tiny].any()
    smallest = torch.finfo(torch.float32).tiny
    for name in masks:
        weight = model.get_parameter(name)
        assert not ((weight != 0) & (weight.abs() < smallest)).any()


def test_pruned_weights_never_decay_into_subnormals() -> None:
    """Trap 16: two hundred steps of decay by half leave exact zeros, not 1e-40."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=1.0)
    pruner = Pruner(0.5, Schedule(0, 10, 5)).prepare(model, optimizer)
    for _ in range(200):
        optimizer.zero_grad()
        (0 * model(batch(0)[0])).sum().backward()
        optimizer.step()
        pruner.step()
    for name, mask in pruner.masks.items():
        assert torch.equal(model.get_parameter(name)[~mask], torch.zeros(int((~mask).sum())))


# --- masks from elsewhere


def test_masks_of_torch_prune_go_on_in_training() -> None:
    model = net()
    for layer in (model[0], model[2]):
        torch_prune.l1_unstructured(layer, "weight", 0.6)
    masks = Masks.from_model(model)
    for layer in (model[0], model[2]):
        torch_prune.remove(layer, "weight")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with masks.attach(model, optimizer):
        train(model, optimizer, range(4))
        assert holds(masks, model, optimizer)


def test_a_pruner_extends_exact_zeros_of_any_checkpoint() -> None:
    model = net()
    found = prune(model, 0.4)  # stands for SparseGPT, Wanda, ASP: zeros, and nothing that says so
    pruner = Pruner(0.7).prepare(model, OPTIMIZERS["sgd"](model.parameters()))
    assert all(not (pruner.masks[name] & ~found[name]).any() for name in found)


def test_a_network_from_torch_pruning_is_pruned_further_and_converted() -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    model, x = zoo.build("resnet18").eval(), torch.randn(1, 3, 64, 64)
    torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.fc],
    ).step()
    assert Masks.from_model(model).sparsity() < 1e-6
    masks = prune(model, 0.9)
    assert Masks.from_model(model) == masks
    fast = convert(model, x, keep_dense="never")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_torch_pruning_leaves_nothing_to_mask() -> None:
    """It removes channels: a smaller dense network, every weight of which is kept."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    kept = model[0].weight.detach().flatten(1).norm(dim=1).topk(5).indices.sort().values
    smaller = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    smaller[0].weight.data = model[0].weight.detach()[kept]
    smaller[2].weight.data = model[2].weight.detach()[:, kept]
    masks = Masks.from_model(smaller)
    assert masks.sparsity() == 0 and masks.compression() == 1
    with pytest.raises(ValueError, match=r"mask '0\.weight' must be of the parameter's shape"):
        masks.apply_(model)  # masks of one width do not fit the other
