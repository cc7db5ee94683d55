"""Times of candidates as a test wants them, instead of measured ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest


def script_times(
    monkeypatch: pytest.MonkeyPatch, ms: Callable[[str], float]
) -> list[dict[str, float]]:
    """Let compare_ms call each candidate once and report ms(name). Returns what it reported."""
    calls: list[dict[str, float]] = []

    def compare(functions: dict[str, Callable[[], object]], **_: Any) -> dict[str, float]:
        for function in functions.values():
            function()
        calls.append({name: ms(name) for name in functions})
        return calls[-1]

    for module in ("sparseprune.choose", "sparseprune.forms"):
        monkeypatch.setattr(sys.modules[module], "compare_ms", compare)
    return calls
