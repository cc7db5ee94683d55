"""Files with programs: what load gives runs them again, bit for bit."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import (
    NETWORKS,
    Separable,
    edit,
    image,
    make,
    pack_all,
    planned,
    run,
    serves,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from sparseprune.io import load, save
from sparseprune.program.planned import Planned, plan, unplan

NAMES = ("mlp", "residual", "separable", "regions")
networks = pytest.mark.parametrize("name", NAMES)


@networks
def test_loaded_model_runs_its_programs_again(name: str, tmp_path: Path) -> None:
    fast, x = planned(name)
    before = list(fast.state_dict())
    save(fast, tmp_path / "file")
    assert isinstance(fast, Planned) and list(fast.state_dict()) == before
    loaded = load(tmp_path / "file")
    assert serves(loaded, x) and list(loaded.state_dict()) == before
    assert type(loaded)._program_names == type(fast)._program_names
    for inputs in (x, x[:1], torch.cat([x, x])):
        assert torch.equal(run(loaded, inputs), run(fast, inputs))
    save(loaded, tmp_path / "again")
    assert torch.equal(run(load(tmp_path / "again"), x), run(fast, x))


@networks
def test_copies_and_state_of_a_loaded_model(name: str, tmp_path: Path) -> None:
    fast, x = planned(name)
    save(fast, tmp_path / "file")
    loaded, expected = load(tmp_path / "file"), run(fast, x)
    twin = copy.deepcopy(loaded)
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    assert torch.equal(run(twin, x), expected) and not torch.equal(run(loaded, x), expected)
    loaded.load_state_dict(fast.state_dict())
    assert serves(loaded, x) and torch.equal(run(loaded, x), expected)


@networks
def test_other_calls_run_layer_by_layer(name: str, tmp_path: Path) -> None:
    fast, x = planned(name)
    save(fast, tmp_path / "file")
    loaded = load(tmp_path / "file")
    layers = unplan(copy.deepcopy(fast))
    x.requires_grad_()
    assert not serves(loaded, x)
    (grad,) = torch.autograd.grad(_logits(loaded(x)).square().sum(), x)
    (expected,) = torch.autograd.grad(_logits(layers(x)).square().sum(), x)
    torch.testing.assert_close(grad, expected)
    x.requires_grad_(False)
    assert not serves(loaded.train(), x)
    if name != "residual":  # its dropout is saved as it runs in eval mode
        torch.testing.assert_close(run(loaded, x), run(layers.train(), x))
    loaded.load_state_dict(fast.state_dict())
    assert serves(loaded.eval(), x)
    with pytest.raises((RuntimeError, ValueError)):
        loaded(x.double())
    assert torch.equal(run(unplan(loaded), x), run(unplan(copy.deepcopy(fast)), x))


def _logits(y: Any) -> Tensor:
    return y["logits"] if isinstance(y, dict) else y


def test_arguments_of_the_example(tmp_path: Path) -> None:
    fast, x = planned("separable")
    fast = unplan(fast)
    assert plan(fast, {"x": x, "scale": 2.0}) is None
    save(fast, tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert serves(loaded, x, 2.0) and serves(loaded, scale=2.0, x=x) and not serves(loaded, x)
    with torch.no_grad():
        assert torch.equal(loaded(x, scale=2.0), fast(x, scale=2.0))
        torch.testing.assert_close(loaded(x) * 2, loaded(x, 2.0))


def test_what_programs_own_is_not_stored(tmp_path: Path) -> None:
    fast, _ = planned("separable")
    save(fast, tmp_path / "programs")
    save(unplan(copy.deepcopy(fast)), tmp_path / "layers")
    assert load_file(tmp_path / "programs").keys() == load_file(tmp_path / "layers").keys()
    large = nn.Sequential(nn.Conv2d(3, 64, 7), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU(),
                          nn.Conv2d(256, 256, 3))  # fmt: skip
    large = pack_all(large, "csr/groups", ("0",)).eval()
    assert plan(large, image(1, 3, 16, 16)) is None
    save(large, tmp_path / "large")
    tensors = [*unplan(large).parameters(), *large.buffers()]
    assert os.path.getsize(tmp_path / "large") < 1.02 * sum(t.nbytes for t in tensors)


@networks
def test_programs_in_a_given_model(name: str, tmp_path: Path) -> None:
    fast, x = planned(name)
    save(fast, tmp_path / "file")
    given = NETWORKS[name][0]()
    loaded = load(tmp_path / "file", given)
    assert isinstance(loaded, type(given)) and serves(loaded, x)
    assert torch.equal(run(loaded, x), run(fast, x))
    with pytest.raises(ValueError, match=r"load: file .* given model"):
        load(tmp_path / "file", fast)  # packed already


class Untraced(Separable):
    """Its forward can be followed for an example only."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs)


def test_programs_of_an_untraceable_forward(tmp_path: Path) -> None:
    make("separable")  # seeds
    fast = pack_all(Untraced(), "csr/groups").eval()
    x = image(2, 3, 16, 14)
    assert plan(fast, x) is None
    with pytest.warns(UserWarning, match="not the forward of Untraced"):
        save(fast, tmp_path / "file")
    with pytest.raises(ValueError, match=r"model=Untraced\(\.\.\.\)"):
        load(tmp_path / "file")
    loaded = load(tmp_path / "file", Untraced())
    assert serves(loaded, x) and torch.equal(run(loaded, x), run(fast, x))


class OtherConv(nn.Conv2d):
    """No layer that a program knows, nor equivalent to one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0


def test_a_given_model_that_programs_do_not_fit(tmp_path: Path) -> None:
    fast, x = planned("separable")
    save(fast, tmp_path / "file")
    given = Separable()
    given.stem = OtherConv(3, 8, 3, stride=2, padding=1, bias=False)
    with pytest.warns(UserWarning, match=r"programs of file .* do not fit .*runs layer by layer"):
        loaded = load(tmp_path / "file", given)
    assert type(loaded) is Separable
    assert torch.equal(run(loaded, x), run(unplan(copy.deepcopy(fast)), x))


def odd(x: Tensor) -> Tensor:
    """A function that no file may name."""
    return x + 1


torch.fx.wrap("odd")


class Wrapped(nn.Module):
    """Its graph calls a function of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return odd(self.c(torch.relu(self.b(self.a(x)))))


def test_programs_that_cannot_be_saved(tmp_path: Path) -> None:
    fast, x = pack_all(Wrapped(), "csr/groups").eval(), image(2, 16)
    assert plan(fast, x) is None
    with pytest.warns(UserWarning) as caught:
        save(fast, tmp_path / "file")
    said = " ".join(str(w.message) for w in caught)
    assert "not the forward of Wrapped" in said and "not the programs of Wrapped" in said
    assert torch.equal(run(load(tmp_path / "file", Wrapped()), x), run(unplan(fast), x))


def test_programs_of_a_part_are_not_saved(tmp_path: Path) -> None:
    fast, x = planned("separable")
    whole = nn.Sequential(fast, nn.Softmax(-1))
    with pytest.warns(UserWarning, match="not the programs of Sequential .*those of '0' belong"):
        save(whole, tmp_path / "file")
    loaded = load(tmp_path / "file")
    assert isinstance(whole[0], Planned) and not any("program" in n for n in loaded.state_dict())
    torch.testing.assert_close(run(loaded, x), run(whole, x))


def test_files_without_programs(tmp_path: Path) -> None:
    fast, x = planned("residual")
    layers = unplan(fast)
    save(layers, tmp_path / "file")
    edit(tmp_path / "file", lambda manifest, _: manifest.pop("programs"))
    loaded = load(tmp_path / "file")
    assert not isinstance(loaded, Planned) and torch.equal(run(loaded, x), run(layers, x))
