"""L1, L2 and group lasso: values, gradients and proximal steps by hand and by brute force."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from method_cases import OPTIMIZERS, net, train
from scipy.optimize import minimize
from torch import Tensor, nn

from sparseprune.patterns import Block
from sparseprune.training import L1, L2, GroupLasso, Method


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0], [4.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[-0.5, 2.0]]))
    return model


def sgd(model: nn.Module, lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


BY_HAND = [
    (L1(0.1), 0.1 * (3 + 1 + 4 + 0.5 + 2)),
    (L2(0.1), 0.1 * (9 + 1 + 16 + 0.25 + 4)),
    (GroupLasso(0.1), 0.1 * (10**0.5 + 4 + 4.25**0.5)),  # rows
    (GroupLasso(0.1, "channel"), 0.1 * (5 + 1 + 0.5 + 2)),  # columns
    (GroupLasso(0.1, "row"), 0.1 * (5 + 1 + 0.5 + 2)),  # of a Linear layer the same
    (GroupLasso(0.1, "kernel"), 0.1 * (3 + 1 + 4 + 0.5 + 2)),  # single weights
    (GroupLasso(0.1, "layer"), 0.1 * (26**0.5 + 4.25**0.5)),
    (GroupLasso(0.1, Block(2, 1)), 0.1 * (5 + 1 + 0.5 + 2)),
]


@pytest.mark.parametrize(("method", "value"), BY_HAND)
def test_penalty_by_hand(method: Method, value: float) -> None:
    model = two_layers()
    penalty = method.prepare(model, sgd(model)).penalty()
    assert penalty.shape == () and penalty.dtype == torch.float64
    assert penalty.item() == pytest.approx(value, rel=1e-12)
    penalty.backward()
    assert model[0].weight.grad.isfinite().all()  # also at exact zeros
    assert model[0].bias.grad is None
    method.finalize()


def groups_of(kind: str, shape: torch.Size, groups: int) -> Iterator[Tensor]:
    """Marks of each group of weights [out, in / groups, y, x], by loops over indices."""
    out, inputs, height, width = shape
    per = out // groups
    for g in range(groups):
        own = slice(g * per, (g + 1) * per)
        places = itertools.product(range(inputs), range(height), range(width))
        keys = {
            "filter": [(g * per + o,) for o in range(per)],
            "channel": [(own, i) for i in range(inputs)],
            "row": [(own, *place) for place in places],
            "kernel": [(g * per + o, i) for o in range(per) for i in range(inputs)],
            "layer": [(slice(None),)] if g == 0 else [],
        }[kind]  # fmt: skip
        for key in keys:
            mark = torch.zeros(shape, dtype=torch.bool)
            mark[key] = True
            yield mark


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["filter", "channel", "row", "kernel", "layer"])
def test_groups_of_a_convolution(kind: str, groups: int) -> None:
    conv = nn.Conv2d(4, 6, (2, 3), groups=groups).double()
    before = conv.weight.detach().clone()
    marks = list(groups_of(kind, before.shape, groups))
    assert torch.equal(sum(mark.int() for mark in marks), torch.ones_like(before).int())
    method = GroupLasso(0.3, kind).prepare(conv, sgd(conv))
    expected = 0.3 * sum(before[mark].norm() for mark in marks)
    torch.testing.assert_close(method.penalty(), expected)
    method.finalize()

    typical = float(torch.stack([before[mark].norm() for mark in marks]).median())
    optimizer = sgd(conv)  # lr 0.5
    method = GroupLasso(2 * typical, kind, proximal=True).prepare(conv, optimizer)
    assert method.penalty() == 0
    optimizer.step()  # no gradients: the proximal step alone
    expected = before.clone()
    for mark in marks:
        norm = before[mark].norm()
        expected[mark] *= max(0.0, float(1 - typical / norm)) if norm > typical else 0.0
    torch.testing.assert_close(conv.weight.detach(), expected)
    for mark in marks:
        zeros = conv.weight.detach()[mark] == 0
        assert zeros.all() == (before[mark].norm() <= typical) and zeros.any() == zeros.all()
    assert not torch.signbit(conv.weight[conv.weight == 0]).any()


def value(method: Method, v: Tensor) -> float:
    """R(v) of one row of a Linear layer."""
    return float({"L1": v.abs().sum(), "L2": v.square().sum()}.get(type(method).__name__, v.norm()))


@pytest.mark.parametrize("weight", [[0.9, -0.3, 0.05], [0.1, 0.1, -0.1], [0.0, 0.0, 2.0]])
@pytest.mark.parametrize(
    "method", [L1(0.4, proximal=True), L2(0.4, proximal=True), GroupLasso(0.4, proximal=True)]
)
def test_proximal_step_is_the_minimum(method: Method, weight: list[float]) -> None:
    """Against 1/2 |v - w|^2 + lr * strength * R(v), minimised by a method without derivatives."""
    w = torch.tensor([weight], dtype=torch.float64)
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data.copy_(w)
    optimizer = sgd(layer)
    method.prepare(layer, optimizer)
    optimizer.step()
    method.finalize()

    def objective(v: object) -> float:
        t = torch.as_tensor(v, dtype=torch.float64)
        return float((t - w[0]).square().sum() / 2) + 0.5 * 0.4 * value(method, t)

    found = minimize(objective, w[0].numpy(), method="Nelder-Mead",
                     options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000})  # fmt: skip
    got = layer.weight.detach()[0]
    assert objective(got) <= found.fun + 1e-12
    torch.testing.assert_close(got, torch.as_tensor(found.x), atol=1e-4, rtol=0)


def test_soft_threshold_in_closed_form() -> None:
    model = two_layers()
    optimizer = sgd(model)
    L1(2.0, proximal=True).prepare(model, optimizer)  # lr * strength = 1
    optimizer.step()
    assert model[0].weight.tolist() == [[2.0, 0.0], [3.0, 0.0]]
    assert model[1].weight.tolist() == [[0.0, 1.0]]
    zeros = [layer.weight[layer.weight == 0] for layer in model]
    assert not torch.signbit(torch.cat(zeros)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_and_a_learning_rate_of_zero(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 3, bias=False).to(dtype)
    layer.weight.data[0] = 0
    layer.weight.data[1] = 1e-4  # whose square underflows in half precision
    optimizer = sgd(layer, lr=0.0)
    method = GroupLasso(1.0, proximal=True).prepare(layer, optimizer)
    before = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, before)  # 0 / 0 is not NaN
    optimizer.param_groups[0]["lr"] = 1e-4
    optimizer.step()
    assert layer.weight[1].any()
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()
    assert not layer.weight[1].any() and layer.weight[2].any()
    assert method.finalize()["weight"].any(1).tolist() == [False, False, True]


def test_each_weight_has_its_own_learning_rate() -> None:
    model = two_layers()
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.25))
    L1(1.0, proximal=True).prepare(model, optimizer)
    optimizer.step()
    assert model[0].weight.tolist() == [[2.0, 0.0], [3.0, 0.0]]
    assert model[1].weight.tolist() == [[-0.25, 1.75]]


def test_l2_is_weight_decay() -> None:
    decayed = two_layers()
    penalised = copy.deepcopy(decayed)
    parts = [{"params": [m.weight for m in decayed], "weight_decay": 0.2},
             {"params": [m.bias for m in decayed]}]  # fmt: skip
    optimizers = [torch.optim.SGD(parts, 0.01, momentum=0.9), torch.optim.SGD(
        penalised.parameters(), 0.01, momentum=0.9)]  # fmt: skip
    method = L2(0.1).prepare(penalised, optimizers[1])
    for _ in range(3):
        for model, optimizer in zip((decayed, penalised), optimizers, strict=True):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 2).double()).square().sum()
            (loss + (method.penalty() if model is penalised else 0)).backward()
            optimizer.step()
    for a, b in zip(decayed.parameters(), penalised.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    penalty = L1(1.0).prepare(model, sgd(model)).penalty()
    torch.testing.assert_close(penalty, model[0].weight.abs().sum())


def test_a_thawed_weight_is_penalised_from_then_on() -> None:
    model = two_layers()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), 0.5)
    method = L1(0.1).prepare(model, optimizer)
    assert method.penalty().item() == pytest.approx(0.25)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters()})
    assert method.penalty().item() == pytest.approx(1.05)
    method.strength = 0.2
    assert method.penalty().item() == pytest.approx(2.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_with_proximal_groups_empties_whole_filters(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    method = GroupLasso(0.5 if name in ("sgd", "nesterov") else 5.0, proximal=True)
    train(model, optimizer, method.prepare(model, optimizer), 8)
    masks = method.finalize()
    assert 0 < masks.sparsity() < 1
    for name, mask in masks.items():
        rows = mask.flatten(1)
        assert torch.equal(rows.any(1), rows.all(1)), name


def test_patterns_without_groups_are_refused() -> None:
    for wrong in ("unstructured", "2:4"):
        with pytest.raises(ValueError, match="groups must be a partition into groups"):
            GroupLasso(0.1, wrong)
    with pytest.raises(ValueError, match="did you mean 'filter'"):
        GroupLasso(0.1, "filters")
