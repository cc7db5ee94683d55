"""Which packings are chosen inside programs, at scripted times."""

from __future__ import annotations

import random
import sys
from copy import deepcopy

import pytest
import torch
from io_problems import serves
from program_models import PATTERNS, arguments, assert_close, planned, sparsify
from scripted_times import script_steps
from torch import nn
from tuned_models import assert_consistent, mixed, mlp, names, prefer, weights

from sparseprune.formats import Csr
from sparseprune.program import packings
from sparseprune.program.planned import unplan
from sparseprune.program.tune import STAYS, tune
from sparseprune.tuning import Times

pytestmark = pytest.mark.usefixtures("no_fallback")


@pytest.mark.parametrize("format", ["csr/rows", "csr/sorted/128", "csr/sorted/64", "csr/groups/96"])
def test_every_weight_takes_its_fastest_packing(
    monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    model, x = mlp()
    expected, dense = model(x), [w.unpack() for w in weights(model).values()]
    script_steps(monkeypatch, prefer(format))
    assert tune(model, x, Times()) is None
    assert names(model) == {format}
    assert serves(model, x)
    assert_close(model(x), expected)
    assert_close(type(model)._unplanned.forward(model, x), expected)
    assert_consistent(model)
    assert all(map(torch.equal, [w.unpack() for w in weights(model).values()], dense))


def test_each_weight_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp((256, 192, 100))
    wanted = {"192 256": "csr/sorted/64", "100 192": "csr/groups/96"}

    def ms(key: str, name: str) -> float:
        return 0.5 if any(size in key and name == f for size, f in wanted.items()) else 1.0

    script_steps(monkeypatch, ms)
    tune(model, x, Times())
    assert [w.format.name for w in weights(model).values()] == list(wanted.values())
    assert_consistent(model)


@pytest.mark.parametrize(("share", "changes"), [(STAYS - 0.01, True), (STAYS, False), (1.0, False)])
def test_near_ties_stay(monkeypatch: pytest.MonkeyPatch, share: float, changes: bool) -> None:
    model, x = mlp()
    before = names(model)
    script_steps(monkeypatch, lambda key, name: share if name == "csr/rows" else 1.0)
    tune(model, x, Times())
    assert names(model) == ({"csr/rows"} if changes else before)


@pytest.mark.parametrize(("ms", "share"), [(9.0, 0.5), (0.01, 0.05)])
def test_disturbed_runs_do_not_count(
    monkeypatch: pytest.MonkeyPatch, ms: float, share: float
) -> None:
    model, x = mlp()
    before, drawn = names(model), random.Random(0)
    other = next(iter(before)) if ms > 1 else "csr/rows"
    script_steps(monkeypatch, lambda key, n: ms if n == other and drawn.random() < share else 1)
    tune(model, x, Times())
    assert names(model) == before


def test_hopeless_layouts_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 512)
    model = planned(sparsify(nn.Sequential(nn.Linear(512, 512), nn.ReLU()), 1.0), x)
    costs = {"csr/rows": 1.7, "csr/sorted": 1.5, "csr/groups": 1.0}
    monkeypatch.setattr(packings, "packed_ns", lambda name, *_: costs[name])
    tried = script_steps(monkeypatch, prefer("csr/rows"), hopeless=1.6)
    tune(model, x, Times())
    assert {name.rpartition("/")[0] for _, name in tried} == {"csr/sorted", "csr/groups"}


def test_large_weights_have_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packings, "LARGE", 256 * 256 - 1)
    model, x = mlp()
    tried = script_steps(monkeypatch, prefer("csr/rows"))
    tune(model, x, Times())
    large = {name for key, name in tried if "256 256" in key}
    assert large == {"csr/rows", "csr/groups/128", "csr/sorted/128"}


def test_programs_of_few_tokens_gather_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))
    for layer in (model[0], model[2]):
        layer.weight = Csr("rows").pack(layer.weight.unpack())
    model = planned(model, x := torch.randn(2, 64))
    tried = script_steps(monkeypatch, prefer("csr/sorted"))
    tune(model, x, Times())
    assert not tried and names(model) == {"csr/rows"}


def test_alike_weights_share_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))))
    for layer in model:
        layer.weight = model[0].weight.twin()
    model = planned(model, x := torch.randn(70, 64))
    tried = script_steps(monkeypatch, prefer("csr/rows"))
    tune(model, x, Times())
    assert names(model) == {"csr/rows"}, "also those that were not tried"
    assert len(set(tried)) == 3 and len(tried) % (4 * 3) == 0, "one key, 4 of 8 weights"


def test_tied_weights_are_one_and_their_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))
    model[2].weight = model[0].weight
    model = planned(model, x := torch.randn(70, 64))
    expected = model(x)
    first = {"csr/rows": 1.0, "csr/sorted/64": 2.0, "csr/groups/64": 9.0}
    second = {"csr/rows": 9.0, "csr/sorted/64": 2.0, "csr/groups/64": 1.0}
    script_steps(monkeypatch, lambda key, n: (first if "clamp 0.0" in key else second)[n])
    tune(model, x, Times())
    assert model[0].weight is model[2].weight and names(model) == {"csr/sorted/64"}
    assert_close(model(x), expected)
    assert_consistent(model)


def test_changed_outputs_bring_the_old_packings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mixed()
    before, expected = names(model), model(x)
    script_steps(monkeypatch, prefer("csr/sorted"))
    monkeypatch.setattr(sys.modules["sparseprune.program.tune"], "agrees", lambda *_: False)
    reason = tune(model, x, Times())
    assert reason and "changed the outputs" in reason
    assert names(model) == before and torch.equal(model(x), expected)
    assert_consistent(model)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("format", ["csr/sorted", "csr/rows"])
def test_any_network(monkeypatch: pytest.MonkeyPatch, name: str, format: str) -> None:
    """Dense convolutions, several programs and inputs, 1 to 3 dimensions."""
    model, inputs = PATTERNS[name]()
    expected = sparsify(model)(*deepcopy(arguments(inputs)))
    model = planned(model, inputs)
    script_steps(monkeypatch, prefer(format))
    with torch.no_grad():
        assert tune(model, deepcopy(inputs), Times()) is None
        assert any(found.startswith(format) for found in names(model))
        assert_consistent(model)
        assert_close(model(*deepcopy(arguments(inputs))), expected)
        assert_close(unplan(model)(*deepcopy(arguments(inputs))), expected)


def test_real_times() -> None:
    model, x = mixed()
    expected, kept = model(x), Times()
    assert tune(model, x, kept) is None
    assert_close(model(x), expected)
    assert_consistent(model)
