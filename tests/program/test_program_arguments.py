"""Arguments in lists, tuples and dicts: their form, and programs that take them."""

from __future__ import annotations

from collections import UserDict
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program_models import assert_close, planned, programs, sparsify
from torch import Tensor, nn

from sparseprune import convert
from sparseprune.forms import NARROW
from sparseprune.program.arguments import Arguments
from sparseprune.program.planned import Planned, plan, unplan


class Nested(nn.Module):
    """Sums what it finds, and gives it back in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, parts: list[Tensor], more: dict[str, Any], *, scale: Any = None) -> Any:
        x = parts[0] + parts[1] * more["factors"][0] + more["shift"]
        x = x if scale is None else x * scale[0]
        y = self.second(F.gelu(self.first(x)))
        return {"y": y, "all": [*parts, (y, None)]}


class Growing(Nested):
    """Changes the list that it is given."""

    def forward(self, parts: list[Tensor], more: Any = None, *, scale: Any = None) -> Any:
        parts.append(self.second(F.gelu(self.first(parts[0]))))
        return parts[-1]


def arguments(batch: int = 2) -> tuple[Any, ...]:
    x, y = torch.randn(2, batch, 8)
    return [x, y], {"factors": (torch.randn(8), 2), "shift": torch.randn(batch, 8)}


def test_names_are_of_their_own() -> None:
    form = Arguments(Nested(), arguments())
    assert form.names == ["parts_0_", "parts_1_", "more_0_0_", "more_1_"]
    x = torch.zeros(1)

    class Clash(nn.Module):
        def forward(self, a: Any, a_0: Any, a_0_: Any) -> None: ...

    assert len(set(Arguments(Clash(), ([x], x, x)).names)) == 3


def test_tensors_and_filled_are_inverse() -> None:
    given = arguments()
    form = Arguments(Nested(), given)
    tensors = form.tensors(given, {})
    assert tensors is not None and len(tensors) == 4
    args, kwargs = form.filled(tensors)
    assert not kwargs and args[0] is not given[0] and args[0][1] is given[0][1]
    assert args[1]["factors"][1] == 2 and args[1]["shift"] is given[1]["shift"]
    again = Arguments.from_spec(*form.spec())
    assert again.names == form.names and again.tensors(given, {}) is not None


OTHERS = {
    "a_tuple": lambda parts, more: (tuple(parts), more),
    "one_more": lambda parts, more: ([*parts, parts[0]], more),
    "a_number": lambda parts, more: (parts, more | {"factors": (more["factors"][0], 3)}),
    "a_key": lambda parts, more: (parts, {"factors": more["factors"], "move": more["shift"]}),
    "an_order": lambda parts, more: (parts, dict(reversed(more.items()))),
    "a_dtype": lambda parts, more: ([parts[0].double(), parts[1]], more),
    "no_tensor": lambda parts, more: ([None, parts[1]], more),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_form_does_not_fit(name: str) -> None:
    form = Arguments(Nested(), arguments())
    assert form.tensors(OTHERS[name](*arguments()), {}) is None


@pytest.mark.parametrize("scale", [None, [torch.tensor(2.0)]], ids=["plain", "keyword"])
def test_programs_take_them(scale: Any) -> None:
    model = sparsify(Nested())
    layers = deepcopy(model)
    names = {} if scale is None else {"scale": scale}
    parts, more = arguments()
    example = (parts, more) if scale is None else {"parts": parts, "more": more, **names}
    fast = planned(model, example)
    assert programs(fast)
    for batch in (2, 3):
        given = arguments(batch)
        if batch == 2:
            assert fast._programmed(given, names) is not None
        assert_close(fast(*given, **names)["y"], layers(*given, **names)["y"])
        assert isinstance(fast(*given, **names)["all"][2], tuple)


def test_a_list_that_the_forward_changes_is_refused() -> None:
    model = sparsify(Growing())
    assert "changes a list" in str(plan(model, ([torch.randn(2, 8)],)))
    with torch.no_grad():
        assert len(unplan(model)([torch.randn(2, 8)])) == 2


class Counting(Nested):
    """Needs the number of its images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x))) / len(x)


def pruned(model: Nested) -> Nested:
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.8)
    return model.eval()


def test_convert_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    model = pruned(Nested())
    fast = convert(model, arguments(), keep_dense="never")
    assert isinstance(fast, Planned) and NARROW not in fast.report.notes
    given = arguments(5)
    assert_close(fast(*given)["y"], model(*given)["y"])


def test_a_mapping_is_keywords_and_the_report_tells_of_narrow_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    model, x = pruned(Counting()), torch.randn(16, 8)
    fast = convert(model, UserDict(x=x), keep_dense="never")
    assert isinstance(fast, Planned) and NARROW in fast.report.notes
    assert fast._programmed((x,), {}) is not None and fast._programmed((x[:2],), {}) is None
    for given in (x, x[:2]):
        assert_close(fast(given), model(given))
