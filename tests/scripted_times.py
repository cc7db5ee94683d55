"""Times of candidates as a test wants them, instead of measured ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sparseprune.program.tune import Trial


def script_times(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[str], float]
) -> list[dict[str, float]]:
    """Let compare_ms call each candidate once and report ms(name). Returns what it reported.

    All packings in a program take the same time.
    """
    calls: list[dict[str, float]] = []

    def compare(functions: dict[str, Callable[[], object]], **_: Any) -> dict[str, float]:
        for function in functions.values():
            function()
        calls.append({name: ms(name) for name in functions})
        return calls[-1]

    for module in ("sparseprune.choose", "sparseprune.forms"):
        monkeypatch.setattr(sys.modules[module], "compare_ms", compare)
    script_steps(monkeypatch, lambda key, name: 1.0)
    return calls


def script_steps(
    monkeypatch: pytest.MonkeyPatch,
    ms: Callable[[str, str], float],
    hopeless: float = math.inf,
) -> list[tuple[str, str]]:
    """Let each csr step of a program take ms(key, name of its format). Returns what was tried.

    On every instruction set the same: all formats, but for those `hopeless` times worse.
    """
    tune: Any = sys.modules["sparseprune.program.tune"]
    tried: list[tuple[str, str]] = []

    def step_ms(trial: Trial) -> list[float]:
        tried.extend(trial.tried.values())
        times = dict.fromkeys(range(len(trial.text.splitlines())), 1.0)
        return [*(times | {p: ms(*of) for p, of in trial.tried.items()}).values()]

    monkeypatch.setattr(tune, "step_ms", step_ms)
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(sys.modules["sparseprune.program.packings"], "HOPELESS", hopeless)
    return tried
