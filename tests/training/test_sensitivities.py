"""LOBSTER, sensitivity-driven regularisation and SeReNe, against one derivative per output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparseprune.training import Lobster, Method, SensitivityDecay, Serene

STRENGTH, RATE = 0.2, 0.1


def by_hand() -> nn.Sequential:
    """y = W relu(V x) with V = [[1, -1], [0.5, 2]], W = [[2, 0.25], [-1, 0.5]]."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model = model.double()
    model[0].weight.data = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[2.0, 0.25], [-1.0, 0.5]], dtype=torch.float64)
    return model


def convolutional() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 2), nn.Tanh(),
        nn.Flatten(), nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)
    ).double()  # fmt: skip


def data(samples: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (samples,), generator=generator)


def one_step(model: nn.Module, method: Method, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Name -> [1 - S]_+ as the step of SGD shows it: (w - lr * g - w') / (strength * w)."""
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    method.prepare(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    method.finalize()
    after = dict(model.named_parameters())
    for name, old in before.items():
        if name.endswith("bias"):
            torch.testing.assert_close(after[name].detach(), old - RATE * after[name].grad)
    return {
        name: (old - RATE * after[name].grad - after[name].detach()) / (STRENGTH * old)
        for name, old in before.items()
        if name.endswith("weight")
    }


# --- by hand: x = (1, 3), p = (-2, 6.5), h = (0, 6.5), dy/dV = W diag(0, 1) x


X = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
Y = torch.tensor([0])


def test_sensitivity_by_hand() -> None:
    """dy_1/dv_2i = 0.25 x_i, dy_2/dv_2i = 0.5 x_i; dy_k/dw_kj = h_j."""
    found = one_step(by_hand(), SensitivityDecay(STRENGTH), X, Y)
    expected = torch.tensor([[1, 1], [1 - 0.375, 0]], dtype=torch.float64)
    torch.testing.assert_close(found["0.weight"], expected)
    expected = torch.tensor([[1, 0], [1, 0]], dtype=torch.float64)  # 6.5 / 2 is above 1
    torch.testing.assert_close(found["2.weight"], expected)
    found = one_step(by_hand(), SensitivityDecay(STRENGTH, alpha=[0.8, 0.1]), X, Y)
    expected = torch.tensor([1 - 0.8 * 0.25 - 0.1 * 0.5, 1 - 3 * 0.25]).double()
    torch.testing.assert_close(found["0.weight"][1], expected)


@pytest.mark.parametrize(
    ("variant", "hidden", "last"),
    [
        ("full", [1, 1 - (0.25 + 0.5) / 2], [0.5, 0.5]),
        ("lower_bound", [1, 1 - (0.25 + 0.5) / 2], [0.5, 0.5]),
        ("local", [1, 0], [0, 0]),
    ],
)
def test_serene_by_hand(variant: str, hidden: list[float], last: list[float]) -> None:
    found = one_step(by_hand(), Serene(STRENGTH, variant), X, Y)
    for name, neurons in (("0.weight", hidden), ("2.weight", last)):
        expected = torch.tensor(neurons, dtype=torch.float64)[:, None].expand(2, 2)
        torch.testing.assert_close(found[name], expected)


def test_the_lower_bound_lets_outputs_cancel() -> None:
    model = by_hand()
    model[2].weight.data[1, 1] = -0.25  # dy_1/dp_2 + dy_2/dp_2 = 0
    found = one_step(copy.deepcopy(model), Serene(STRENGTH, "lower_bound"), X, Y)
    assert found["0.weight"][1].tolist() == pytest.approx([1, 1])
    found = one_step(model, Serene(STRENGTH), X, Y)
    assert found["0.weight"][1].tolist() == pytest.approx([0.75, 0.75])


def test_lobster_by_hand() -> None:
    """L = 1/2 (w x - 1)^2: dL/dw = (w x - 1) x."""
    for w, x, insensitive in ((0.5, 1.0, 0.5), (0.25, 2.0, 0.0), (3.0, 0.25, 0.9375)):
        layer = nn.Linear(1, 1, bias=False).double()
        layer.weight.data.fill_(w)
        optimizer = torch.optim.SGD(layer.parameters(), RATE)
        Lobster(STRENGTH).prepare(layer, optimizer)
        ((layer(torch.tensor([[x]]).double()) - 1) ** 2 / 2).sum().backward()
        optimizer.step()
        slope = (w * x - 1) * x
        assert layer.weight.item() == pytest.approx(w - RATE * slope - STRENGTH * w * insensitive)


# --- against derivatives, one by one, in float64


def slopes(model: nn.Module, x: Tensor, of: str) -> list[Tensor]:
    """dy_k/dw of the mean over samples, for every k, by a pass of its own."""
    weight = model.get_parameter(of)
    return [torch.autograd.grad(model(x)[:, k].mean(), weight)[0] for k in range(3)]


def test_sensitivity_is_the_sum_of_slopes() -> None:
    model, (x, y) = convolutional(), data()
    model[7].weight.data.mul_(20)  # some slopes above 1
    expected = {
        name: (1 - sum(slope.abs() for slope in slopes(model, x, name)) / 3).clamp(min=0)
        for name, _ in model.named_parameters()
        if name.endswith("weight")
    }
    found = one_step(model, SensitivityDecay(STRENGTH), x, y)
    assert any((value == 0).any() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("rescaled", [False, True])
def test_lobster_without_a_slope(rescaled: bool) -> None:
    """A gradient of zero is no sensitivity; without a gradient nothing is known."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model)
    model[0].weight.grad = torch.zeros(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    Lobster(STRENGTH, rescaled).prepare(model, optimizer)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0].weight * (1 - STRENGTH))
    assert torch.equal(model[1].weight, before[1].weight)


@pytest.mark.parametrize("rescaled", [False, True])
def test_lobster_is_the_slope_of_the_loss(rescaled: bool) -> None:
    model, (x, y) = convolutional(), data()
    loss = 20 * nn.functional.cross_entropy(model(x), y)
    expected = {}
    for name, weight in model.named_parameters():
        size = torch.autograd.grad(loss / 20, weight, retain_graph=True)[0].abs()
        expected[name] = 1 - (size / size.max() if rescaled else size).clamp(max=1)
    found = one_step(model, Lobster(STRENGTH, rescaled), x, y)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def neuron_sensitivities(model: nn.Sequential, x: Tensor, variant: str) -> dict[str, Tensor]:
    """S of every neuron by loops: sample by sample, output by output, place by place."""
    found: dict[str, Tensor] = {}
    for sample in x.split(1):
        for i, layer in enumerate(model):
            if not hasattr(layer, "weight"):
                continue
            p = model[: i + 1](sample).detach().requires_grad_(True)
            y = nn.Sequential(copy.deepcopy(model[i + 1 :]))(p.clone())[0]
            size = {
                "full": lambda y=y, p=p: sum(slope(y[k], p).abs() for k in range(3)) / 3,
                "lower_bound": lambda y=y, p=p: slope(y.sum(), p).abs() / 3,
                "local": lambda p=p: (p > 0).double(),
            }[variant]()
            places = size[0].reshape(size.shape[1], -1).mean(1)
            found[f"{i}.weight"] = found.get(f"{i}.weight", 0) + places / len(x)
    return found


def slope(y: Tensor, p: Tensor) -> Tensor:
    return torch.autograd.grad(y, p, retain_graph=True)[0]


@pytest.mark.parametrize("variant", ["full", "lower_bound", "local"])
def test_serene_is_the_mean_over_samples_and_places(variant: str) -> None:
    """Also where an in-place nonlinearity overwrites the pre-activation."""
    model, (x, y) = convolutional(), data()
    expected = neuron_sensitivities(model, x, variant)
    found = one_step(model, Serene(STRENGTH, variant), x, y)
    for name, sensitivity in expected.items():
        value = (1 - sensitivity).clamp(min=0)
        assert value.min() < 1
        shaped = value.reshape(-1, *[1] * (found[name].dim() - 1)).expand_as(found[name])
        torch.testing.assert_close(found[name], shaped, msg=name)


def test_the_lower_bound_is_one() -> None:
    model, (x, _) = convolutional(), data()
    full, lower = (neuron_sensitivities(model, x, v) for v in ("full", "lower_bound"))
    assert all((lower[name] <= full[name] + 1e-12).all() for name in full)
    assert any((lower[name] < full[name] - 1e-3).any() for name in full)


# --- passes and steps


@pytest.mark.parametrize("make", [SensitivityDecay, Serene])
def test_several_passes_give_the_mean(make: type[Method]) -> None:
    """Micro-batches of one step; passes without gradients or in eval mode do not count."""
    x, y = data(8)
    alone = [one_step(convolutional(), make(STRENGTH), part, y[:4]) for part in x.split(4)]
    model = convolutional()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    make(STRENGTH).prepare(model, optimizer)
    before = copy.deepcopy(model)
    for part in x.split(4):
        model(part).sum().backward()
    with torch.no_grad():
        model(100 * x)
    model.eval()(100 * x).sum().backward()
    model.train()
    optimizer.step()
    for name in ("0.weight", "5.weight"):
        old, new = before.get_parameter(name).detach(), model.get_parameter(name).detach()
        assert all((part[name] > 0).all() for part in alone)  # 1 - S itself, not clamped
        assert not torch.allclose(alone[0][name], alone[1][name])
        expected = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close((old - new) / (STRENGTH * old), expected)


@pytest.mark.parametrize("make", [SensitivityDecay, Serene])
def test_each_step_measures_anew(make: type[Method]) -> None:
    x, _ = data(8)
    model, late = convolutional(), convolutional()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    method = make(0.0).prepare(model, optimizer)
    model(10 * x).sum().backward()
    optimizer.step()  # changes nothing
    method.strength = STRENGTH
    model(x).sum().backward()
    optimizer.step()
    optimizer = torch.optim.SGD(late.parameters(), 0.0)
    make(STRENGTH).prepare(late, optimizer)
    late(x).sum().backward()
    optimizer.step()
    for a, b in zip(model.parameters(), late.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [SensitivityDecay, Serene])
def test_a_step_without_a_pass_is_an_error(make: type[Method]) -> None:
    model, (x, y) = convolutional(), data()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    make(STRENGTH).prepare(model, optimizer)
    nn.functional.cross_entropy(model.eval()(x), y).backward()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="run in training mode before each step"):
        optimizer.step()
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [SensitivityDecay, Serene])
def test_shared_layers_and_unused_ones(make: type[Method]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out, self.idle = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(self.layer(x)))

    model = Shared()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    make(STRENGTH).prepare(model, optimizer)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    shrunk = model.layer.weight / before.layer.weight
    assert ((shrunk >= 1 - STRENGTH - 1e-6) & (shrunk <= 1)).all() and (shrunk < 1).any()
    idle = model.idle.weight / before.idle.weight
    kept = 1 if make is Serene else 1 - STRENGTH  # not run: unknown; or no output depends on it
    torch.testing.assert_close(idle, torch.full_like(idle, kept))


def test_outputs_and_alpha_must_fit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)))
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    Serene(0.1).prepare(model, optimizer)
    with pytest.raises(ValueError, match=r"the model's output must be a tensor \[samples, outputs"):
        model(torch.randn(2, 3))
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    SensitivityDecay(0.1, alpha=[0.5, 0.5]).prepare(model, optimizer)
    with pytest.raises(ValueError, match="alpha must be one number for each of 4 outputs, got 2"):
        model(torch.randn(2, 3))
    with pytest.raises(ValueError, match="every alpha must be"):
        SensitivityDecay(0.1, alpha=[0.5, -0.5])
    with pytest.raises(ValueError, match="did you mean 'lower_bound'"):
        Serene(0.1, "lower")


def test_outputs_may_be_logits_in_half_precision() -> None:
    class Hugging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> object:
            return type("Output", (), {"logits": self.layer(x)})()

    model = Hugging()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    Serene(STRENGTH).prepare(model, optimizer)
    before = model.layer.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3)).logits.sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.layer.weight, before * (1 - STRENGTH * 0.75))
