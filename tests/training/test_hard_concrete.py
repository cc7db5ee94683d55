"""L0 by hard concrete gates: the distribution, the expected L0, the pruned network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparseprune import Masks
from sparseprune.training.hard_concrete import (
    LIMITS,
    HardConcrete,
    architecture,
    mode,
    probability_open,
    sample,
)

DOUBLE = torch.float64
LOG_ALPHAS = [-4.6, -2.0, -0.5, 0.0, 1.0, 3.0, 4.6]


def draws(log_alpha: float, count: int = 200_000) -> torch.Tensor:
    u = torch.rand(count, dtype=DOUBLE).clamp(1e-6, 1 - 1e-6)
    return sample(torch.tensor(log_alpha, dtype=DOUBLE), u)


@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_masses_at_zero_and_one_are_the_closed_forms(log_alpha: float) -> None:
    """Within 5 standard errors of 200,000 draws."""
    z = draws(log_alpha)
    p0 = 1 - 1 / (1 + math.exp(-(log_alpha - 2 / 3 * math.log(0.1 / 1.1))))
    p1 = 1 / (1 + math.exp(-(log_alpha - 2 / 3 * math.log(1.1 / 0.1))))
    for mass, p in (((z == 0), p0), ((z == 1), p1)):
        assert abs(mass.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / len(z)) + 1e-6
    one = torch.tensor(log_alpha, dtype=DOUBLE)
    assert probability_open(one).item() == pytest.approx(1 - p0)


def test_gate_by_hand() -> None:
    zero = torch.zeros((), dtype=DOUBLE)
    assert sample(zero, torch.tensor(0.5, dtype=DOUBLE)).item() == pytest.approx(0.5)
    # log odds of 0.8 are log 4; times 3/2 they are log 8; sigmoid 8/9
    assert sample(zero, torch.tensor(0.8, dtype=DOUBLE)).item() == pytest.approx(8 / 9 * 1.2 - 0.1)
    assert mode(zero).item() == pytest.approx(0.5)
    assert mode(torch.tensor(math.log(3), dtype=DOUBLE)).item() == pytest.approx(0.8)
    assert mode(torch.tensor(LIMITS, dtype=DOUBLE)).tolist() == [0, 1]


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, 2, groups=2, stride=2), (2, 4, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (1, 2, 3, 3, 3)),
}
CASES = [(layer, g) for layer in LAYERS for g in ("weight", "unit", "input", "output")]


def gated(kind: str, granularity: str, **more: float) -> tuple[nn.Module, HardConcrete]:
    layer = LAYERS[kind][0]().double()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    method = HardConcrete(0.1, 60, granularity, **more).prepare(layer, optimizer)
    with torch.no_grad():
        layer.gate_log_alpha.uniform_(-3, 3)
    return layer, method


def effective_weights(layer: nn.Module, x: torch.Tensor, count: int) -> torch.Tensor:
    """The weights that `count` calls of the layer really used."""
    used = []
    handle = layer.register_forward_pre_hook(lambda m, _: used.append(m.weight.detach().clone()))
    for _ in range(count):
        layer(x)
    handle.remove()
    return torch.stack(used)


@pytest.mark.parametrize(("kind", "granularity"), CASES)
def test_expected_l0_is_the_mean_number_of_open_weights(kind: str, granularity: str) -> None:
    """Of 2,000 sampled networks, within 5 standard errors; the penalty is lambda / N of it."""
    layer, method = gated(kind, granularity)
    x = torch.randn(LAYERS[kind][1], dtype=DOUBLE)
    with torch.no_grad():
        open_ = (effective_weights(layer, x, 2_000) != 0).flatten(1).sum(1).double()
    [expected] = method.expected_l0().values()
    assert abs(open_.mean() - expected) < 5 * open_.std() / math.sqrt(2_000)
    assert open_.std() > 0
    assert method.penalty().item() == pytest.approx(0.1 / 60 * expected.item())
    method.penalty().backward()
    assert (layer.gate_log_alpha.grad > 0).all()


SHAPES = {
    ("linear", "weight"): (4, 5),
    ("linear", "input"): (5,),
    ("linear", "unit"): (5,),
    ("linear", "output"): (4,),
    ("groups", "input"): (4,),
    ("groups", "output"): (6,),
    ("groups", "unit"): (6,),
    ("groups", "weight"): (6, 2, 2, 2),
}


@pytest.mark.parametrize(("kind", "granularity"), SHAPES)
def test_one_gate_for_every_group(kind: str, granularity: str) -> None:
    layer, _ = gated(kind, granularity)
    assert tuple(layer.gate_log_alpha.shape) == SHAPES[kind, granularity]


@pytest.mark.parametrize("kind", ["linear", "conv2d", "groups"])
def test_gates_of_inputs_and_outputs_act_on_what_they_name(kind: str) -> None:
    """A closed input gate: the same as that input at zero. An output gate: that output at zero."""
    x = torch.randn(LAYERS[kind][1], dtype=DOUBLE)
    layer, _ = gated(kind, "input")
    layer.eval()
    with torch.no_grad():
        layer.gate_log_alpha.fill_(LIMITS[1])
        whole = layer(x)
        without = x.clone()
        without[:, 1] = 0
        expected = layer(without)
        layer.gate_log_alpha[1] = LIMITS[0]
        assert torch.allclose(layer(x), expected) and not torch.allclose(layer(x), whole)
    layer, _ = gated(kind, "output")
    layer.eval()
    with torch.no_grad():
        layer.gate_log_alpha.fill_(LIMITS[1])
        whole = layer(x)
        layer.gate_log_alpha[1] = LIMITS[0]
        whole[:, 1] = 0  # bias and all
        assert torch.allclose(layer(x), whole)


@pytest.mark.parametrize(("kind", "granularity"), CASES)
def test_finalized_network_is_the_gated_one_in_eval_mode(kind: str, granularity: str) -> None:
    layer, method = gated(kind, granularity)
    x = torch.randn(LAYERS[kind][1], dtype=DOUBLE)
    layer.eval()
    with torch.no_grad():
        layer.gate_log_alpha.reshape(-1)[0] = LIMITS[0]
        expected = layer(x)
        assert torch.equal(layer(x), expected)  # deterministic
        masks = method.finalize()
        assert torch.equal(layer(x), expected)
    assert 0 < masks.sparsity() < 1
    assert masks == Masks.from_model(layer)
    assert not torch.signbit(layer.weight[~masks["weight"]]).any()


def test_train_mode_samples_and_learns() -> None:
    layer, _ = gated("linear", "weight")
    x = torch.randn(3, 5, dtype=DOUBLE)
    assert not torch.equal(layer(x), layer(x))
    layer(x).square().sum().backward()
    assert layer.gate_log_alpha.grad.any() and layer.weight.grad.any()


def test_log_alpha_starts_at_the_drop_rate_and_is_held_in_its_limits() -> None:
    layer = nn.Linear(200, 50)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    method = HardConcrete(1.0, 1, drop=0.2).prepare(layer, optimizer)
    start = layer.gate_log_alpha.detach()
    assert start.mean().item() == pytest.approx(math.log(4), abs=1e-3)
    assert start.std().item() == pytest.approx(1e-2, rel=0.1)
    for sign in (1, -1):
        layer.gate_log_alpha.grad = sign * torch.full((50, 200), 100.0)
        optimizer.step()
        edge = torch.full((50, 200), LIMITS[0 if sign > 0 else 1])
        assert torch.equal(layer.gate_log_alpha.detach(), edge)
    method.finalize()


def test_separate_lambdas() -> None:
    """The longest name wins; layers without one are left alone."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), nn.Linear(3, 2)).double()
    method = HardConcrete({"0": 1.0, "0.1": 2.0}, 10, "unit")
    method.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    assert not hasattr(model[1], "gate_log_alpha")
    first, second = method.expected_l0().values()
    assert method.penalty().item() == pytest.approx((1.0 * first + 2.0 * second).item() / 10)
    open_inputs = probability_open(model[0][0].gate_log_alpha).sum()
    assert first.item() == pytest.approx(3 * open_inputs.item())


def test_architecture_counts_live_units_as_the_published_table() -> None:
    """Live inputs of linear layers, live filters of convolutions."""
    conv = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    conv[0, 1, 2, 2] = conv[3] = True
    linear = torch.tensor([[1, 0, 1], [1, 0, 0]], dtype=torch.bool)
    assert architecture(Masks({"c.weight": conv, "l.weight": linear})) == {
        "c.weight": 2,
        "l.weight": 2,
    }


def test_irrelevant_inputs_are_closed() -> None:
    x = torch.randn(256, 12)
    noise = torch.randn(256, 1)
    noise -= x @ torch.linalg.lstsq(x, noise).solution
    y = x[:, :3] @ torch.tensor([[2.0], [-1.0], [1.5]]) + noise
    layer = nn.Linear(12, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    method = HardConcrete(10.0, 256, "unit").prepare(layer, optimizer)
    for _ in range(800):
        optimizer.zero_grad()
        ((layer(x) - y).square().mean() / 2 + method.penalty()).backward()
        optimizer.step()
    masks = method.finalize()
    assert architecture(masks) == {"weight": 3}
    assert masks["weight"].tolist() == [[True] * 3 + [False] * 9]


BAD = [
    ({"strength": -1.0, "samples": 1}, "strength", ValueError),
    ({"strength": math.nan, "samples": 1}, "strength", ValueError),
    ({"strength": {}, "samples": 1}, "strength", ValueError),
    ({"strength": "much", "samples": 1}, "strength", TypeError),
    ({"strength": 1.0, "samples": 0}, "samples", ValueError),
    ({"strength": 1.0, "samples": 1, "granularity": "row"}, "granularity", ValueError),
    ({"strength": 1.0, "samples": 1, "drop": 1.0}, "drop", ValueError),
]


@pytest.mark.parametrize(("arguments", "named", "kind"), BAD)
def test_bad_arguments(arguments: dict[str, object], named: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"HardConcrete: {named}"):
        HardConcrete(**arguments)  # type: ignore[arg-type]


def test_unknown_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"strength must be keyed by .*'fc'"):
        HardConcrete({"fc": 1.0}, 10).prepare(model, torch.optim.SGD(model.parameters()))
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
