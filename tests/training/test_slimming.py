"""Network slimming: the subgradient, the quantile, the masks, and what `prune` makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import prune
from sparseprune.training import Slimming, channel_masks, slimming_threshold


def net(first: list[float], second: list[float]) -> nn.Sequential:
    """Two convolutions with batch norms of these scales, and a linear layer without."""
    torch.manual_seed(0)
    a, b = len(first), len(second)
    model = nn.Sequential(nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(),
                          nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 2))  # fmt: skip
    model[1].weight.data = torch.tensor(first)
    model[4].weight.data = torch.tensor(second)
    return model


GAMMAS = [0.5, -0.1, 0.0, 0.9], [0.2, -0.8, 0.4, 0.3, 1.0, 0.7]


def test_the_step_by_hand() -> None:
    """gamma <- gamma - lr * (dL/dgamma + strength * sign(gamma)); all else as without."""
    model = net(*GAMMAS).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    method = Slimming(0.01).prepare(model, optimizer)
    assert method.penalty() == 0
    model(torch.randn(4, 1, 6, 6).double()).square().sum().backward()
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()}
    optimizer.step()
    for name, (old, grad) in before.items():
        extra = 0.01 * old.sign() if name in ("1.weight", "4.weight") else 0
        torch.testing.assert_close(model.get_parameter(name).detach(), old - 0.5 * (grad + extra))
    assert method.finalize().sparsity() == 0


def test_the_penalty_shrinks_the_scales() -> None:
    norms = {}
    for strength in (0.0, 0.02, 0.2):
        model = net(*GAMMAS)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = Slimming(strength).prepare(model, optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                model(torch.randn(8, 1, 6, 6)), torch.randint(2, (8,))
            ).backward()
            optimizer.step()
        method.finalize()
        norms[strength] = sum(model[i].weight.detach().abs().sum().item() for i in (1, 4))
    assert norms[0.2] < norms[0.02] < norms[0.0]


def test_ignored_norms_and_missing_gradients() -> None:
    model = net(*GAMMAS)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    Slimming(0.1, ignore="4").prepare(model, optimizer)
    optimizer.step()  # no gradients at all
    assert model[1].weight.tolist() == pytest.approx(GAMMAS[0])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model[1].weight.tolist() == pytest.approx([0.45, -0.05, 0.0, 0.85])
    assert model[4].weight.tolist() == pytest.approx(GAMMAS[1])


def test_weight_decay_on_scales_is_refused() -> None:
    model = net(*GAMMAS)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)
    with pytest.raises(ValueError, match=r"without weight decay on batch norm scales, got 0\.0001"):
        Slimming(0.1).prepare(model, optimizer)
    groups = Slimming.parameter_groups(model, 1e-4)
    assert groups[1]["params"] == [model[1].weight, model[4].weight]
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(groups, 0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    Slimming(0.1).prepare(model, optimizer).finalize()


@pytest.mark.parametrize(
    ("share", "threshold", "kept"),
    [
        (0.0, 0.0, ([1, 1, 1, 1], [1, 1, 1, 1, 1, 1])),
        (0.3, 0.2, ([1, 0, 0, 1], [0, 1, 1, 1, 1, 1])),
        (0.5, 0.4, ([1, 0, 0, 1], [0, 1, 0, 0, 1, 1])),
    ],
)
def test_threshold_and_masks(share: float, threshold: float, kept: tuple[list[int], ...]) -> None:
    model = net(*GAMMAS)
    assert slimming_threshold(model, share) == pytest.approx(threshold)
    masks = channel_masks(model, share)
    assert {n: m.int().tolist() for n, m in masks.items()} == {
        "1.weight": kept[0], "4.weight": kept[1]
    }  # fmt: skip
    for name, mask in masks.items():
        above = model.get_parameter(name).detach().abs() > slimming_threshold(model, share)
        assert torch.equal(mask, above) or share == 0


def test_prune_by_the_same_scales() -> None:
    """Filters of one size: bn_scale with pattern filter prunes the same channels."""
    model = net(GAMMAS[0], GAMMAS[1])
    model[0] = nn.Conv2d(4, 4, 3, padding=1)  # so that all filters hold 36 weights
    expected = channel_masks(model, 0.5)
    masks = prune(model, 0.5, "bn_scale", pattern="filter", ignore=nn.Linear)
    for conv, norm in (("0.weight", "1.weight"), ("3.weight", "4.weight")):
        assert torch.equal(masks[conv].flatten(1).any(1), expected[norm])
        assert torch.equal(masks[conv].flatten(1).all(1), expected[norm])


def test_no_layer_is_emptied() -> None:
    model = net([0.01, 0.02], [1.0] * 8)
    with pytest.warns(UserWarning, match=r"1\.weight"):
        masks = channel_masks(model, 0.5)
    assert masks["1.weight"].tolist() == [False, True]
    assert int(masks["4.weight"].sum()) == 4  # ties by position; the others give more


def test_errors() -> None:
    model = net(*GAMMAS)
    with pytest.raises(ValueError, match="share must be a number in"):
        slimming_threshold(model, 1.0)
    with pytest.raises(ValueError, match="one with batch norm scales, got none"):
        channel_masks(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="names that the model has"):
        channel_masks(model, 0.5, ignore="nothing")
    partial = torch.optim.SGD(model[1].parameters(), 0.1)
    with pytest.raises(ValueError, match=r"over all scales that train, got no '4\.weight'"):
        Slimming(0.1).prepare(model, partial)
