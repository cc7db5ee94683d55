"""Timing that can be trusted on a noisy machine: candidates in turn, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def compare_ms(
    functions: dict[str, Callable[[], object]], seconds: float = 0.5, rounds: int = 7
) -> dict[str, float]:
    """Median milliseconds of each function, all measured in turn so that drift hits all alike.

    Args:
        functions: name -> call; called as they are, so enter inference_mode outside.
        seconds: stop after about this long ...
        rounds: ... but not before this many rounds.

    Returns:
        name -> median in ms.
    """
    names = list(functions)
    for name in names:  # warm caches, lazy initialisation and thread pools
        functions[name]()
        functions[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    while len(times[names[0]]) < rounds or time.perf_counter() < end:
        for name in names:
            times[name].append(_once_ms(functions[name]))
        names = names[1:] + names[:1]
    return {name: statistics.median(times[name]) for name in functions}


def _once_ms(function: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3
