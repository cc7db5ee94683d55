"""Dead units: nothing that counts is cut, everything that does not is, and outputs stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparseprune import Masks, prune
from sparseprune.training import remove_dead_units


def linear(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    weight = torch.tensor(rows, dtype=torch.float64)
    layer = nn.Linear(*weight.shape[::-1], bias=bias is not None).double()
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def test_by_hand() -> None:
    """Unit 0 reads nothing and gives relu(2) = 2; nothing reads unit 1; unit 3 gives relu(-1)."""
    model = nn.Sequential(
        linear([[0, 0], [1, 2], [3, 4], [0, 0]], [2, 0.5, 0.25, -1]),
        nn.ReLU(),
        linear([[5, 0, 1, 2], [7, 0, 2, 0]], [0.5, 1]),
    )
    x = torch.randn(5, 2).double()
    y = model(x).detach()
    masks = remove_dead_units(model)
    assert model[0].weight.tolist() == [[0, 0], [0, 0], [3, 4], [0, 0]]
    assert model[2].weight.tolist() == [[0, 0, 1, 0], [0, 0, 2, 0]]
    assert model[2].bias.tolist() == [10.5, 15]
    assert masks["2.weight"].tolist() == [[False, False, True, False]] * 2
    torch.testing.assert_close(model(x).detach(), y)


def test_death_spreads_through_the_chain() -> None:
    """0 is constant, so 1 of the next layer is; nothing reads 0 there, so nothing its reader."""
    model = nn.Sequential(
        linear([[0], [1], [1]], [1, 0, 0]), nn.Tanh(),
        linear([[1, 0, 2], [3, 0, 0], [0, 4, 0]], [0, 0.5, 0]), nn.Tanh(),
        linear([[0, 1, 1]], [0]),
    )  # fmt: skip
    x = torch.randn(5, 1).double()
    y = model(x).detach()
    remove_dead_units(model)
    assert model[0].weight.flatten().tolist() == [0, 1, 0]
    assert model[2].weight.tolist() == [[0, 0, 0], [0, 0, 0], [0, 4, 0]]
    assert model[4].weight.tolist() == [[0, 0, 1]]
    torch.testing.assert_close(model(x).detach(), y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.GELU(),
                         nn.Dropout(0.5), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8),
                         nn.Sigmoid(), nn.Linear(8, 3))  # fmt: skip


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 2, groups=2), nn.BatchNorm2d(6), nn.PReLU(6)),
        nn.Sequential(nn.Conv2d(6, 6, 1, groups=6, bias=False), nn.BatchNorm2d(6), nn.SiLU()),
        nn.Sequential(nn.Conv2d(6, 4, 2, padding=1, padding_mode="circular"), nn.AvgPool2d(2)),
        nn.Flatten(), nn.Linear(16, 5), nn.Flatten(), nn.Identity(), nn.Linear(5, 3)
    )  # fmt: skip


def padded() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3, padding="same"),
        nn.Hardswish(), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(54, 3)
    )  # fmt: skip


def strange() -> nn.Sequential:
    """A mean over padding, and a layer without a bias in front of a nonlinearity."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 1), nn.AvgPool2d(2, padding=1), nn.Conv2d(5, 6, 1), nn.Sigmoid(),
        nn.Conv2d(6, 6, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3)
    )  # fmt: skip


CHAINS: list[Callable[[], nn.Sequential]] = [mlp, convolutions, padded, strange]


def random_model(make: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    """With running statistics of its own, many dead rows and columns, and single zeros."""
    torch.manual_seed(seed)
    model = make().double()
    for _ in range(3):
        model(torch.randn(8, 2, 4, 4).double())
    prune(model, 0.4)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.data[torch.rand(module.weight.shape[0]) < 0.4] = 0
            module.weight.data[:, torch.rand(module.weight.shape[1]) < 0.3] = 0
    return model.eval()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", CHAINS)
def test_outputs_stay_and_a_second_call_finds_nothing(
    make: Callable[[], nn.Sequential], seed: int
) -> None:
    model = random_model(make, seed)
    before = copy.deepcopy(model)
    x = torch.randn(7, 2, 4, 4).double()
    y = model(x).detach()
    masks = remove_dead_units(model)
    torch.testing.assert_close(model(x).detach(), y)
    assert masks == Masks.from_model(model)
    old = Masks.from_model(before)
    assert all(not (masks[name] & ~old[name]).any() for name in masks)
    assert masks.sparsity() > old.sparsity()
    state = copy.deepcopy(model.state_dict())
    assert remove_dead_units(model) == masks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("seed", range(5))
def test_nothing_dead_is_left_where_all_can_be_folded(seed: int) -> None:
    """In chains of Linear layers each unit that is left has live inputs and outputs."""
    model = random_model(mlp, seed)
    masks = remove_dead_units(model)
    for a, b in (("1.weight", "5.weight"), ("5.weight", "8.weight")):
        assert torch.equal(masks[a].any(1), masks[b].any(0))


def test_constants_that_cannot_be_folded_stay() -> None:
    """relu(1) into zero padding is no constant map; relu(-1) is one of zeros, and goes."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1)).double()
    model[0].weight.data[:2] = 0
    model[0].bias.data[:] = torch.tensor([1.0, -1.0, 0.0])
    x = torch.randn(1, 1, 4, 4).double()
    y = model(x).detach()
    masks = remove_dead_units(model)
    assert masks["2.weight"].flatten(2).any(2)[0].tolist() == [True, False, True]
    torch.testing.assert_close(model(x).detach(), y)


def test_weights_in_channels_last() -> None:
    model = random_model(padded, 0).to(memory_format=torch.channels_last)
    twin = random_model(padded, 0)
    assert remove_dead_units(model) == remove_dead_units(twin)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", [True, False])
def test_modes_and_statistics_are_kept(mode: bool) -> None:
    model = random_model(mlp, 1).train(mode)
    model[4].eval()
    variance = model[2].running_var.clone()
    remove_dead_units(model)
    assert [m.training for m in (model, model[2], model[4])] == [mode, mode, False]
    assert torch.equal(model[2].running_var, variance)


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


REFUSED = [
    (nn.ModuleList([nn.Linear(2, 2)]), "an nn.Sequential of layers, got ModuleList"),
    (nn.Sequential(nn.Linear(2, 2), Residual()), "got Residual at '1'"),
    (nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), "got Softmax at '1'"),
    (nn.Sequential(nn.ReLU()), "one with layers"),
    (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2)), "0 nn.Flatten between"),
    (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(2), nn.Linear(4, 2)), "1 nn.Flatten between"),
    (nn.Sequential(nn.Linear(2, 2), nn.Flatten(), nn.Linear(4, 2)), "4 inputs, 1 nn.Flatten"),
    (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)), "reads the 3 units of '0.weight'"),
]


@pytest.mark.parametrize(("model", "match"), REFUSED)
def test_what_is_no_chain_is_refused(model: nn.Module, match: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        remove_dead_units(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_layers_are_refused() -> None:
    layer = nn.Linear(2, 2)
    for model in (nn.Sequential(layer, nn.ReLU(), layer), nn.Sequential(layer, nn.Linear(2, 2))):
        model[-1].weight = layer.weight
        with pytest.raises(ValueError, match="each with its own weight, got 2 layers with 1"):
            remove_dead_units(model)
