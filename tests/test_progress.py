"""What is shown while work takes long: on a terminal alone, and one thing at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import prune_to, recalibrate, sensitivity
from sparseprune.criteria import weight_scores
from sparseprune.progress import progress, status

Shown = pytest.CaptureFixture[str]


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a test only: capsys puts a file of its own in place for the call."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)


def scores(count: int = 2) -> None:
    data = [torch.randn(3, 4) for _ in range(count)]
    weight_scores(nn.Linear(4, 2), "taylor", data, lambda output, _: output.square().mean())


def test_nothing_without_a_terminal(capsys: Shown) -> None:
    scores()
    with status("waiting") as say:
        say("still waiting")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    scores()
    assert "measuring" in capsys.readouterr().err
    recalibrate(nn.BatchNorm1d(4), [torch.randn(3, 4)])
    assert "recalibrate" in capsys.readouterr().err


def test_what_runs_inside_stays_silent(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    assert list(progress([1, 2], "outer")) == [1, 2]
    for _ in progress([1], "outer"):
        scores()
    with status("outer"):
        scores()
    shown = capsys.readouterr().err
    assert "outer" in shown and "measuring" not in shown
    for _ in progress([1, 2], "left early"):
        break
    scores()  # which is shown again
    assert "measuring" in capsys.readouterr().err


@pytest.mark.parametrize("criterion", ["wanda", "lobs", "sparsegpt"])
def test_searches_and_scans_by_criteria_with_bars_of_their_own(
    capsys: Shown, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    terminal(monkeypatch)
    model, data = nn.Linear(8, 4), [torch.randn(9, 8)]
    sensitivity(model, lambda m: 0.0, (0.5,), criterion=criterion, data=data)
    prune_to(model, "parameters", 0.5, criterion=criterion, scope="local", data=data)
    assert "sensitivity" in capsys.readouterr().err
