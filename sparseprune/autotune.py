"""Timing that can be trusted on a noisy machine: candidates take turns, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sparseprune.clocks import Clock, HostClock


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def caller(model: nn.Module, inputs: Any) -> Callable[[], object]:
    """The call that example inputs stand for: a tensor, positional arguments or keywords."""
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return lambda: model(*inputs)
    return lambda: model(inputs)


BURST = 5
"""Timed calls in a row: each candidate runs as in use, with its own weights in the caches."""


def compare_ms(
    functions: dict[str, Callable[[], object]],
    seconds: float = 0.5,
    rounds: int = 3,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Median milliseconds of each function, measured in turn so that drift hits all alike.

    A turn is one call that is not counted, because it finds the caches as another left them, and
    ``BURST`` calls that are.

    Args:
        functions: name -> call; called as they are, so enter inference_mode outside.
        seconds: stop after about this long ...
        rounds: ... but not before every function had this many turns.
        clock: what times a call (:mod:`sparseprune.clocks`); by default the host's, for the CPU.

    Returns:
        name -> median in ms.
    """
    clock = clock or HostClock()
    names = list(functions)
    for name in names:  # lazy initialisation and thread pools
        functions[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    turns = 0
    while turns < rounds or time.perf_counter() < end:
        for name in names:
            functions[name]()
            times[name] += clock.samples_ms(functions[name], BURST)
        names = names[1:] + names[:1]
        turns += 1
    return {name: statistics.median(times[name]) for name in functions}
