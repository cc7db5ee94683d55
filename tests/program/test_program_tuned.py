"""Packings chosen inside programs: their times are kept, and models are as before otherwise."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from io_problems import serves
from program_models import assert_close
from scripted_times import script_steps, script_times
from torch import Tensor, nn
from tuned_models import assert_consistent, mixed, mlp, names, prefer, weights

from sparseprune import convert, tuning
from sparseprune.io import load, save
from sparseprune.program.planned import Planned, plan, unplan
from sparseprune.program.program import Program
from sparseprune.program.tune import tune
from sparseprune.prune import prune
from sparseprune.tuning import Times

pytestmark = pytest.mark.usefixtures("no_fallback")


# Kept times


def test_kept_times_are_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    cases = ((0.2, 70, True), (0.2, 70, False), (0.2, 71, True), (0.3, 70, True), (0.3, 71, True))
    for density, tokens, measures in cases:
        model, x = mlp(tokens=tokens, density=density)
        tried = script_steps(monkeypatch, prefer("csr/sorted/64"))
        kept = Times(path)
        tune(model, x, kept)
        kept.save()
        assert bool(tried) is measures, (density, tokens)
        assert names(model) == {"csr/sorted/64"}


def converted(**options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    prune(model, 0.8)
    x = torch.randn(70, 256)
    return convert(model, x, **options), model, x


def test_convert_tunes_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(tmp_path))
    script_times(monkeypatch, lambda name: {"dense": 1.0, "programs": 0.2}.get(name, 0.5))
    reports = []
    for measures in (True, False):
        tried = script_steps(monkeypatch, prefer("csr/sorted/64"))
        fast, dense, x = converted()
        assert isinstance(fast, Planned) and bool(tried) is measures
        assert names(fast) == {"csr/sorted/64"}
        assert_close(fast(x), dense(x))
        reports.append(fast.report.rows)
    assert reports[0] == reports[1]
    assert {(row.kernel.split()[0], row.block) for row in reports[0]} == {("csr/sorted", 64)}
    assert [row.packed_bytes for row in reports[0]] == [w.nbytes for w in weights(fast).values()]


def test_layers_keep_what_is_best_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"dense": 1.0, "csr/rows": 0.4, "layers": 0.3, "programs": 0.4}
    script_times(monkeypatch, lambda name: times.get(name, 0.5))
    tried = script_steps(monkeypatch, prefer("csr/sorted/64"))
    fast, _, _ = converted()
    assert tried and not isinstance(fast, Planned) and names(fast) == {"csr/rows"}


def test_nothing_is_measured_with_tune_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")
    tried = script_steps(monkeypatch, prefer("csr/rows"))
    fast, _, _ = converted(keep_dense="never")
    assert isinstance(fast, Planned) and not tried and not tuning.measures()


# Afterwards


@pytest.mark.parametrize(
    ("format", "derived"),
    [("csr/sorted", "csr/sorted/160"), ("csr/groups/80", "csr/groups/80"),
     ("csr/rows", "csr/rows")],
)  # fmt: skip
def test_save_load_and_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str, derived: str
) -> None:
    model, x = mixed()
    script_steps(monkeypatch, prefer(format))
    tune(model, x, Times())
    (own,) = [w for name, w in weights(model).items() if name.startswith("program")]
    assert own.format.name == derived
    expected = model(x)
    save(model, tmp_path / "file")
    for other in (load(tmp_path / "file"), deepcopy(model), deepcopy(load(tmp_path / "file"))):
        assert serves(other, x) and torch.equal(other(x), expected)
        assert {n: w.format for n, w in weights(other).items()} == {
            n: w.format for n, w in weights(model).items()
        }
        assert_consistent(other)


def test_a_changed_dense_convolution_keeps_its_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mixed()
    script_steps(monkeypatch, prefer("csr/sorted"))
    tune(model, x, Times())
    before = model(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
        assert not torch.allclose(model(x), before)
        assert_close(model(x), type(model)._unplanned.forward(model, x))
    assert_consistent(model)
    program = next(m for m in model.modules() if isinstance(m, Program))
    assert program.derived[0].numbers


def test_a_plan_after_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mixed()
    script_steps(monkeypatch, prefer("csr/sorted"))
    tune(model, x, Times())
    expected = model(x)
    assert plan(unplan(model), x) is None
    assert_close(model(x), expected)
    assert_consistent(model)
