"""Targeted dropout: who may be dropped, how often, and the cut afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune import Masks
from sparseprune.training.targeted_dropout import TargetedDropout, candidates

W = torch.tensor([[0.1, -0.4, 0.2, 0.3], [5.0, -6.0, 8.0, 7.0], [-0.9, 0.0, 0.8, 0.7]])


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


def test_candidates_by_hand() -> None:
    assert torch.equal(candidates(W, 0.5), bools("1010", "1100", "0101"))
    assert torch.equal(candidates(W, 0.74), bools("1010", "1100", "0101"))  # rounds down
    assert torch.equal(candidates(W, 0.25), bools("1000", "1000", "0100"))
    assert torch.equal(candidates(W, 0.34, "unit"), bools("1111", "0000", "0000"))
    assert torch.equal(candidates(W, 0.67, "unit"), bools("1111", "0000", "1111"))
    assert not candidates(W, 0.0).any() and candidates(W, 1.0).all()
    assert candidates(W, 1.0, "unit").all()


def test_candidates_of_a_convolution_are_ranked_inside_each_filter() -> None:
    weight = torch.stack([torch.arange(1.0, 9.0), 100 * torch.arange(8.0, 0.0, -1)])
    low = candidates(weight.reshape(2, 2, 2, 2), 0.5)
    assert torch.equal(low.flatten(1), bools("11110000", "00001111"))
    whole = candidates(weight.reshape(2, 2, 2, 2), 0.5, "unit")
    assert torch.equal(whole.flatten(1), bools("11111111", "00000000"))


@pytest.mark.parametrize("share", [0.29, 0.57, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_counts_are_exact(share: float, dtype: torch.dtype) -> None:
    """0.29 * 100 is 28.999... in floating point."""
    weight = torch.stack([torch.randperm(100) + 1.0 for _ in range(3)]).to(dtype)
    assert candidates(weight, share).sum(1).tolist() == [round(share * 100)] * 3


def test_a_tie_with_what_stays_stays() -> None:
    assert not candidates(torch.ones(2, 4), 0.5).any()
    assert torch.equal(candidates(torch.tensor([[1.0, 2.0, 2.0, 3.0]]), 0.5), bools("1000"))


def prepared(granularity: str, **more: object) -> tuple[nn.Linear, TargetedDropout]:
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(W)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    method = TargetedDropout(granularity=granularity, **more)  # type: ignore[arg-type]
    return layer, method.prepare(layer, optimizer)


def used(layer: nn.Linear, calls: int) -> torch.Tensor:
    """The weights of `calls` forward passes: what a layer gives for unit vectors."""
    with torch.no_grad():
        return torch.stack([layer(torch.eye(4)).T for _ in range(calls)])


def test_weights_are_dropped_at_the_rate_and_nothing_else_is() -> None:
    """6 candidates, 3,000 calls: each within 5 standard errors of 0.3."""
    layer, _ = prepared("weight", drop=0.3, share=0.5)
    seen = used(layer, 3_000)
    gone = (seen != W).double().mean(0)
    low = candidates(W, 0.5) & (W != 0)
    error = 5 * math.sqrt(0.3 * 0.7 / 3_000)
    assert (gone[low] - 0.3).abs().max() < error
    assert not gone[~low].any()
    assert torch.equal(seen, torch.where(seen == 0, 0, W))
    together = (seen[:, 0, 0] == 0).double() * (seen[:, 0, 2] == 0)
    assert abs(together.mean() - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 3_000)  # independent


def test_units_are_dropped_whole() -> None:
    layer, _ = prepared("unit", drop=0.6, share=0.7)
    alive = (used(layer, 3_000) != 0).sum(2)  # the third unit has three weights
    assert alive[:, 1].eq(4).all()
    for unit, whole in ((0, 4), (2, 3)):
        assert set(alive[:, unit].tolist()) == {0, whole}
        share = (alive[:, unit] == 0).double().mean()
        assert abs(share - 0.6) < 5 * math.sqrt(0.24 / 3_000)


def test_eval_mode_is_the_plain_network() -> None:
    layer, _ = prepared("weight", drop=1.0, share=0.75)
    layer.eval()
    assert torch.equal(used(layer, 1)[0], W)
    layer.train()
    assert torch.equal(used(layer, 1)[0], torch.where(candidates(W, 0.75), 0, W))


def test_dropped_weights_take_no_gradient() -> None:
    layer, _ = prepared("weight", drop=1.0, share=0.5)
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(layer.weight.grad, (~candidates(W, 0.5)).float())


def test_drop_connect_keeps_the_mean_weight() -> None:
    """share=1, rescale=True: every weight, with mean w and variance w^2 p / (1 - p)."""
    layer, _ = prepared("weight", drop=0.4, share=1.0, rescale=True)
    seen = used(layer, 4_000)
    deviation = W.abs() * math.sqrt(0.4 / 0.6)
    assert ((seen.mean(0) - W).abs() <= 5 * deviation / math.sqrt(4_000)).all()
    assert torch.allclose(seen.std(0), deviation, rtol=0.05)


def test_ramp() -> None:
    """Alpha grows linearly; gamma to 95 % in the first half of the steps."""
    layer, method = prepared("weight", drop=0.8, share=0.5, ramp=8)
    optimizer = method._optimizer
    rates = []
    assert torch.equal(used(layer, 20), W.expand(20, 3, 4))  # nothing is dropped at first
    for _ in range(10):
        rates.append(method.rates())
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    alpha = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8]
    gamma = [0, 0.11875, 0.2375, 0.35625, 0.475, 0.48125, 0.4875, 0.49375, 0.5, 0.5]
    assert [r[0] for r in rates] == pytest.approx(alpha)
    assert [r[1] for r in rates] == pytest.approx(gamma)
    gone = (used(layer, 3_000) == 0).double().mean(0)
    assert (gone[bools("1010", "1100", "0001")] - 0.8).abs().max() < 5 * math.sqrt(0.16 / 3_000)


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_the_cut_takes_the_candidates(granularity: str) -> None:
    layer, method = prepared(granularity, drop=0.5, share=0.1)
    masks = method.finalize(sparsity=0.7)
    assert torch.equal(masks["weight"], ~candidates(W, 0.7, granularity) & (W != 0))
    assert torch.equal(layer.weight.detach(), torch.where(masks["weight"], W, 0))
    layer.train()
    assert torch.equal(layer(torch.eye(4)).T, layer.weight)


def test_nothing_is_pruned_unless_asked_and_prune_may_follow() -> None:
    layer, method = prepared("weight", drop=0.5, share=0.5)
    assert method.finalize() == Masks({"weight": W != 0})
    assert torch.equal(layer.weight.detach(), W)
    masks = sp.prune(layer, 0.5, scope="local")
    assert masks.sparsity() == 0.5


def test_training_with_it_makes_the_cut_harmless() -> None:
    """Two inputs say the same: plain training shares the weight, targeted dropout chooses one."""
    x = torch.randn(200, 4).repeat_interleave(2, dim=1)
    y = x.sum(1, keepdim=True)

    def loss_after_cut(drop: float) -> float:
        torch.manual_seed(1)
        layer = nn.Linear(8, 1, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), 0.02)
        method = TargetedDropout(drop, 0.5).prepare(layer, optimizer)
        for _ in range(600):
            optimizer.zero_grad()
            (layer(x) - y).square().mean().backward()
            optimizer.step()
        method.finalize(sparsity=0.5)
        return (layer(x) - y).square().mean().item()

    assert loss_after_cut(0.75) < 0.1 * loss_after_cut(0.0)


BAD = [
    ({"drop": 1.5, "share": 0.5}, "drop"),
    ({"drop": math.nan, "share": 0.5}, "drop"),
    ({"drop": 0.5, "share": -0.1}, "share"),
    ({"drop": 0.5, "share": 0.5, "granularity": "filter"}, "granularity"),
    ({"drop": 1.0, "share": 1.0, "rescale": True}, "drop"),
    ({"drop": 0.5, "share": 0.5, "ramp": -1}, "ramp"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_arguments(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"TargetedDropout: {named}"):
        TargetedDropout(**arguments)  # type: ignore[arg-type]


def test_bad_sparsity_changes_nothing() -> None:
    layer, method = prepared("weight", drop=0.5, share=0.5)
    with pytest.raises(ValueError, match="sparsity"):
        method.finalize(sparsity=1.0)
    assert torch.equal(layer.weight.detach(), W)
    assert method.finalize(sparsity=0.5).sparsity() == 0.5
