"""Files of models whose forward looks at shapes, takes containers and gives output classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from io_problems import edit, pack_all
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseprune.io import load, save
from sparseprune.program.planned import Planned, plan


class Output(dict[str, Any]):
    """As models give them: a dict that its package has registered."""


class Unregistered(dict[str, Any]):
    """The same, unknown to torch."""


pytree.register_pytree_node(
    Output, lambda o: (list(o.values()), list(o)), lambda v, k: Output(zip(k, v, strict=True))
)


class Looking(nn.Module):
    """Tokens through two layers, if there are more than four."""

    def __init__(self, kind: Callable[..., Any] = Output) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.kind = kind

    def forward(self, x: list[Tensor]) -> Any:
        batch, length, _ = x[0].shape
        y = self.second(F.gelu(self.first(x[0] + x[1])))
        y = y.view(batch, length, 2, -1) if length > 4 else y + 1
        return self.kind(y=y, rest=[(length, None), y.sum(1) / length])


def inputs(batch: int = 2, length: int = 6) -> list[Tensor]:
    return [torch.randn(batch, length, 8), torch.randn(batch, length, 8)]


def saved(path: Path, kind: Callable[..., Any] = Output) -> nn.Module:
    torch.manual_seed(0)
    model = Looking(kind).eval()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.7)
    fast = pack_all(model, "csr/groups").eval()
    assert plan(fast, (inputs(),)) is None
    with pytest.warns(UserWarning, match="not the forward of Looking"):
        save(fast, path)
    return fast


def agree(got: Any, expected: Any) -> None:
    flat, form = pytree.tree_flatten(got)
    other, wanted = pytree.tree_flatten(expected)
    assert form == wanted and type(got) is type(expected)
    torch.testing.assert_close(flat, other)


@pytest.mark.parametrize("kind", [Output, dict], ids=["class", "dict"])
def test_programs_guards_and_outputs_are_kept(tmp_path: Path, kind: Any) -> None:
    fast: Any = saved(tmp_path / "file", kind)
    loaded: Any = load(tmp_path / "file", Looking(kind))
    assert isinstance(loaded, Planned)
    for batch, length, served in ((2, 6, True), (3, 5, True), (2, 4, False), (1, 1, False)):
        x = inputs(batch, length)
        assert (loaded._programmed((x,), {}) is not None) == served
        with torch.no_grad():
            agree(loaded(x), fast(x))
    with pytest.warns(UserWarning, match="not the forward"):
        save(loaded, tmp_path / "again")
    assert isinstance(load(tmp_path / "again", Looking(kind)), Planned)


@pytest.mark.parametrize("kind", [OrderedDict], ids=["ordered"])
def test_an_output_that_a_file_may_not_name_costs_the_programs(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    fast = pack_all(Looking(kind).eval(), "csr/groups").eval()
    assert plan(fast, (inputs(),)) is None
    with (
        pytest.warns(UserWarning, match="not the forward"),
        pytest.warns(UserWarning, match="not the programs of Looking .its output holds a Ordered"),
    ):
        save(fast, tmp_path / "file")
    loaded: Any = load(tmp_path / "file", Looking(kind))
    assert not isinstance(loaded, Planned)
    x = inputs()
    with torch.no_grad():
        agree(loaded(x), fast(x))


Change = Callable[[dict[str, Any]], object]


def _sizes(m: dict[str, Any]) -> Any:
    return m["programs"]["sizes"]


def _step(m: dict[str, Any], name: str) -> Any:
    return next(s for s in _sizes(m)["graph"] if s["target"] == name)


BAD: dict[str, Change] = {
    "another_name": lambda m: _sizes(m)["names"].__setitem__(0, "other"),
    "no_name": lambda m: _sizes(m)["names"].__setitem__(0, "a b"),
    "one_name_less": lambda m: _sizes(m)["names"].pop(),
    "no_sizes": lambda m: m["programs"].update(sizes=None),
    "a_program": lambda m: _step(m, "dim").update(op="call_module", target="program_0"),
    "a_method": lambda m: _step(m, "dim").update(target="numpy"),
    "a_function": lambda m: _step(m, "same").update(target="os.system"),
    "an_attribute": lambda m: _step(m, "getattr")["args"].__setitem__(1, "__class__"),
    "no_argument": lambda m: _sizes(m)["graph"].pop(0),
    "no_class": lambda m: m["programs"]["form"].update(kind="os.environ"),
    "another_class": lambda m: m["programs"]["form"].update(kind="test_io_recorded.Unregistered"),
    "one_key_less": lambda m: m["programs"]["form"]["keys"].pop(),
    "one_part_less": lambda m: m["programs"]["form"]["parts"][1]["parts"].pop(),
    "no_form": lambda m: m["programs"].update(form=3),
    "deep_form": lambda m: m["programs"].update(form=_deep("leaf")),
    "deep_argument": lambda m: m["programs"].update(args=[_deep(None)]),
    "odd_argument": lambda m: m["programs"]["args"].__setitem__(0, {"set": []}),
}


def _deep(value: Any) -> Any:
    for _ in range(50):
        keyed = {"kind": "list", "keys": None, "parts": [value]}
        value = keyed if value == "leaf" or isinstance(value, dict) else [value]
    return value


@pytest.mark.parametrize("name", BAD)
def test_changed_files_run_layer_by_layer(tmp_path: Path, name: str) -> None:
    fast = saved(tmp_path / "file")
    edit(tmp_path / "file", lambda manifest, _: BAD[name](manifest))
    with pytest.warns(UserWarning, match="do not fit the given model"):
        loaded = load(tmp_path / "file", Looking())
    assert not isinstance(loaded, Planned)
    x = inputs()
    with torch.no_grad():
        agree(loaded(x), fast(x))
