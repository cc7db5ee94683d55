"""Layers of every kind, and where the groups of a pattern lie, by plain loops over indices."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(3, 7, 3),
    "conv3d": lambda: nn.Conv3d(2, 4, (1, 2, 3)),
    "grouped": lambda: nn.Conv2d(6, 9, 3, groups=3),
    "depthwise": lambda: nn.Conv2d(5, 5, 3, groups=5),
    "depthwise multiplier": lambda: nn.Conv1d(3, 6, 5, groups=3),
}

Key = tuple[int, ...]


def group_of(pattern: str, layer: nn.Module, index: Key) -> Key:
    """The group that the weight at this index belongs to."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    out, inputs, *place = index
    group, row = divmod(out, weight.shape[0] // groups)
    column = 0
    for size, at in zip(weight.shape[1:], index[1:], strict=True):
        column = column * size + at
    if pattern.startswith("block"):
        if pattern.endswith(",taps)"):
            column = (column - inputs * math.prod(weight.shape[2:])) * weight.shape[1] + inputs
        rows, columns = map(int, pattern[6:-1].removesuffix(",taps").split(","))
        return (group, row // rows, column // columns)
    return {
        "filter": (out,),
        "channel": (group, inputs),
        "kernel": (out, inputs),
        "row": (group, inputs, *place),
    }[pattern]


def members(pattern: str, layer: nn.Module) -> dict[Key, list[Key]]:
    """Group -> indices of its weights; groups in the order of their first weight."""
    found: dict[Key, list[Key]] = defaultdict(list)
    for index in itertools.product(*map(range, layer.weight.shape)):
        found[group_of(pattern, layer, index)].append(index)
    return found


def mean(score: torch.Tensor, indices: list[Key]) -> float:
    total = math.fsum(float(score[index]) for index in indices) / len(indices)
    return float(torch.tensor(total, dtype=torch.float32))
