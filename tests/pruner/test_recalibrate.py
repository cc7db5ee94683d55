"""recalibrate: exact statistics over all batches, nothing else touched (trap 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparseprune import prune
from sparseprune.pruning import recalibrate

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "1d sequence": (lambda: nn.BatchNorm1d(3), (3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(3, affine=False), (3, 2, 3, 4)),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4),
    )  # fmt: skip


def images(count: int = 4, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 9, 9, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_are_those_of_all_batches_at_once(kind: str) -> None:
    make, shape = NORMS[kind]
    norm = make()
    # uneven batches far from zero: where averages of batches, and float32 sums, go wrong
    batches = [torch.randn(n, *shape) * n + 1000 for n in (2, 5, 3)]
    assert recalibrate(norm, batches) == 1
    values = torch.cat(batches).double().transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean.double(), values.mean(1), rtol=1e-7)
    assert torch.allclose(norm.running_var.double(), values.var(1), rtol=1e-6)


def test_one_batch_in_a_network_is_one_training_step() -> None:
    """With one batch and momentum 1, training's own statistics are the same."""
    model, twin = net(), net()
    [x] = images(1)
    recalibrate(model, [x])
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    twin.train()[3].eval()  # but for dropout
    twin(x)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert a.dtype == torch.int64 or torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_nothing_else_changes() -> None:
    model = net()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    ids = {name: id(value) for name, value in model.named_buffers()}
    recalibrate(model, images())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert {name: id(value) for name, value in model.named_buffers()} == ids
    assert list(model.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("running" in name)
    assert not any(module._forward_pre_hooks for module in model)


def test_forms_of_data() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return self.net(x)

    expected = net()
    recalibrate(expected, images())
    y = torch.zeros(8)
    loader = torch.utils.data.DataLoader(torch.cat(images()), batch_size=8)
    for model, data in [
        (net(), [(x, y) for x in images()]),
        (net(), [[x] for x in images()]),
        (net(), lambda: iter(images())),
        (net(), loader),
        (Keywords(), [{"x": x, "labels": y} for x in images()]),
        (Keywords(), [((x, y), y) for x in images()]),
    ]:
        assert recalibrate(model, data) == 2
        for a, b in zip(model.buffers(), expected.buffers(), strict=True):
            assert torch.equal(a, b)


def test_at_most_so_many_batches() -> None:
    few, all_of_them = net(), net()
    read = []
    recalibrate(few, (read.append(x) or x for x in images(10)), batches=3)
    recalibrate(all_of_them, images(10)[:3])
    assert len(read) <= 4
    assert all(torch.equal(a, b) for a, b in zip(few.buffers(), all_of_them.buffers(), strict=True))


def test_layers_without_statistics_or_calls() -> None:
    assert recalibrate(nn.Linear(2, 2), []) == 0
    assert recalibrate(nn.BatchNorm1d(2, track_running_stats=False), []) == 0
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "unused": nn.BatchNorm1d(2)})
    model.forward = lambda x: model["used"](x)
    assert recalibrate(model, [torch.randn(4, 2) + 3]) == 1
    assert model["used"].running_mean.min() > 1 and not model["unused"].running_mean.any()


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            [],
            ValueError,
            "recalibrate: data must be at least one batch, got none",
        ),
        (["text"], TypeError, "data must be batches of tensors.*got str"),
        ([torch.randn(8, 1, 9, 9), 3], TypeError, "got int"),
        ([torch.randn(1, 1, 3, 3)], ValueError, r"more than one value per channel, got one of sha"),
        ([torch.randn(8, 2, 9, 9)], RuntimeError, "channels"),
    ],
    ids=["none", "text", "second", "one value", "channels"],
)
def test_bad_data_leaves_the_statistics(data: list[object], kind: type, message: str) -> None:
    model = net()
    with pytest.raises(kind, match=message):
        recalibrate(model, data)
    fresh = net()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), fresh.buffers(), strict=True))
    assert model.training and not any(module._forward_pre_hooks for module in model)


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        recalibrate(3, [])


def test_it_repairs_a_pruned_network() -> None:
    """What it is for: after pruning, outputs are again of mean 0 and variance 1."""
    model = net().eval()
    data = images(6, 16)
    recalibrate(model, data)
    prune(model, 0.7, scope="local")

    def off() -> float:
        y = torch.cat([model(x) for x in data]).transpose(0, 1).flatten(1)
        return float((y.mean(1).abs() + (y.var(1) - 1).abs()).max())

    with torch.no_grad():
        before = off()
        recalibrate(model, data)
        assert off() < 0.05 < 0.2 < before
