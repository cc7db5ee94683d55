"""Steps joined with the step before them, where nobody else reads what lies between."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

from sparseprune.program.steps import (
    Activation,
    Add,
    Channels,
    Csr,
    Depthwise,
    OnTokens,
    Scale,
    Step,
)

READS = ("x", "residual", "by", "y", "key", "value", "mask", "cos", "sin")
NOTHING = Activation()
LAYERS = (Csr, OnTokens, Depthwise)
"""Steps with weights, which take a residual and an activation."""


def reads(step: Step) -> list[int]:
    """The values that a step takes."""
    found = [getattr(step, name) for name in READS if hasattr(step, name)]
    return [value for value in found if value >= 0]


def fuse(steps: list[Step]) -> list[Step]:
    """The same program in fewer steps, its values numbered in order."""
    steps = _fuse_choices(_fuse_activations(_fuse_sums(_fuse_activations(steps))))
    return _renumber(steps)


def _outs(steps: list[Step]) -> dict[int, int]:
    """Value -> index of its step."""
    return {step.out: i for i, step in enumerate(steps) if hasattr(step, "out")}


def _fuse_activations(steps: list[Step]) -> list[Step]:
    """An activation moves into the step whose value it alone reads."""
    kept: list[Any] = list(steps)
    times, outs = Counter(v for step in steps for v in reads(step)), _outs(steps)
    for i, step in enumerate(steps):
        if not isinstance(step, Add) or step.residual != -1:
            continue
        source = outs[step.x]
        before = kept[source]
        takes = isinstance(before, (*LAYERS, Add, Scale)) and before.activation == NOTHING
        if takes and times[step.x] == 1:
            kept[source] = None
            kept[i] = replace(before, out=step.out, activation=step.activation)
    return [step for step in kept if step is not None]


def _fuse_sums(steps: list[Step]) -> list[Step]:
    """A sum moves into the later of the layers that it adds, whose value it alone reads."""
    kept: list[Any] = list(steps)
    times, outs = Counter(v for step in steps for v in reads(step)), _outs(steps)
    for i, step in enumerate(steps):
        if not isinstance(step, Add) or step.residual == -1:
            continue
        pairs = [(step.x, step.residual), (step.residual, step.x)]
        for value, other in sorted(pairs, key=lambda pair: -outs[pair[0]]):
            before = kept[outs[value]]
            free = isinstance(before, LAYERS) and before.residual == -1
            if free and before.activation == NOTHING and times[value] == 1:
                kept[outs[value]] = None
                kept[i] = replace(before, out=step.out, residual=other, activation=step.activation)
                break
    return [step for step in kept if step is not None]


def _fuse_choices(steps: list[Step]) -> list[Step]:
    """Channels chosen of channels that were chosen or dealt are chosen of those before."""
    kept: list[Any] = list(steps)
    outs = _outs(steps)
    for i, step in enumerate(steps):
        if not isinstance(step, Channels) or step.groups != 1:
            continue
        before = kept[outs[step.x]]
        if isinstance(before, Channels):
            kept[i] = replace(step, x=before.x, groups=before.groups,
                              begin=before.begin + step.begin)  # fmt: skip
    read = {value for step in kept for value in reads(step)}
    return [step for step in kept if not isinstance(step, Channels) or step.out in read]


def _renumber(steps: list[Step]) -> list[Step]:
    numbers = {-1: -1}
    for step in steps:
        if hasattr(step, "out"):
            numbers[step.out] = len(numbers) - 1
    return [replace(step, **_numbered(step, numbers)) for step in steps]


def _numbered(step: Step, numbers: dict[int, int]) -> dict[str, Any]:
    names = {f.name for f in fields(step)} & {"out", *READS}
    return {name: numbers[getattr(step, name)] for name in names}
