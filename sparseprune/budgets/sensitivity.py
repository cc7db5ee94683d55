"""How much each layer's pruning alone costs: the sensitivity scan."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.criteria import Criterion
from sparseprune.criteria.statistics import Data, Loss
from sparseprune.errors import bad, bad_type, check_sparsity
from sparseprune.files import replacing, write_atomically
from sparseprune.modes import evaluating
from sparseprune.patterns import Pattern
from sparseprune.progress import progress
from sparseprune.prune import rank, targets
from sparseprune.selection import Ignore

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Point:
    """One layer pruned alone, all others as they were.

    layer: the weight's name. sparsity: what was removed of it, in [0, 1). weights: how many it has.
    value: what `evaluate` gave. worse: by how much that is worse than without pruning.
    """

    layer: str
    sparsity: float
    weights: int
    value: float
    worse: float


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found: the value of the model as it was, and a point per layer and level.

    The lines of a layer through its points tell how far it can be pruned: `within`.
    """

    baseline: float
    points: tuple[Point, ...]

    def within(self, worse: float) -> dict[str, float]:
        """Layer -> the largest sparsity that alone makes the model worse by at most this (>= 0).

        Linear between the scanned levels, where a level counts as no better than those below it;
        no layer goes beyond the highest level. Layers that cannot be pruned at all are left out.
        """
        worse, found = max(worse, 0.0), {}
        for layer, points in itertools.groupby(self.points, key=lambda point: point.layer):
            reached, before, cost = 0.0, 0.0, 0.0
            for point in points:
                after = max(cost, point.worse)
                if after > worse:
                    reached = before + (point.sparsity - before) * (worse - cost) / (after - cost)
                    break
                reached, before, cost = point.sparsity, point.sparsity, after
            if reached > 0:
                found[layer] = reached
        return found

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """One line per point: layer, sparsity, weights, value, worse. Written atomically."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, self.points))
        write_atomically(path, text.getvalue().encode())

    def plot(self, path: str | os.PathLike[str], label: str = "value") -> None:
        """A PNG with a line per layer, value against sparsity (needs matplotlib)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for layer, points in itertools.groupby(self.points, key=lambda point: point.layer):
            line = [(0.0, self.baseline), *((point.sparsity, point.value) for point in points)]
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=layer)
        axes.axhline(self.baseline, color="grey", linewidth=0.8)
        axes.set(xlabel="sparsity of this layer alone", ylabel=label)
        axes.legend(fontsize="x-small", ncols=2)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    sparsities: Sequence[float] = LEVELS,
    higher_is_better: bool = False,
    criterion: str | Criterion = "magnitude",
    pattern: str | Pattern = "unstructured",
    ignore: Ignore = (),
    data: Data | None = None,
    loss: Loss | None = None,
) -> Sensitivity:
    """Prunes one layer at a time to each sparsity and evaluates; the model is left as it was.

    evaluate: model -> a finite number, e.g. its loss on validation data; called in eval mode and
        under no_grad, layers x sparsities + 1 times.
    higher_is_better: whether that number is a score, such as accuracy, and not a loss.
    criterion, pattern, ignore, data, loss: as for `prune`; scored once. (Layer-wise sensitivity:
        Han et al., 2015, arXiv:1506.02626, figure 6; Li et al., 2017, arXiv:1608.08710.)

    Raises ValueError or TypeError for bad arguments, and for a value that is no finite number.
    """
    if not sparsities:
        way_out = "pass e.g. (0.5, 0.7, 0.9)"
        raise bad("sensitivity", "sparsities", "at least one share", "none", way_out)
    levels = sorted(check_sparsity("sensitivity", "sparsities", share) for share in sparsities)
    _, weights = targets(model, 0.0, ignore, "sensitivity")
    ranked = rank(model, weights, criterion, "local", pattern, data, loss, "sensitivity")
    sign = -1.0 if higher_is_better else 1.0
    with evaluating(model), torch.no_grad():
        baseline = _value(evaluate, model, "the model as it is")
        pairs = [(name, share) for name in weights for share in levels]
        points = []
        for name, share in progress(pairs, "sensitivity"):
            mask = ranked.masks({name: share})[name]
            with _masked(weights[name], mask):
                value = _value(evaluate, model, f"{name} at {share:g}")
            done = 1 - int(mask.count_nonzero()) / max(1, mask.numel())
            points.append(Point(name, done, mask.numel(), value, sign * (value - baseline)))
    return Sensitivity(baseline, tuple(points))


@contextmanager
def _masked(weight: nn.Parameter, mask: Tensor) -> Iterator[None]:
    """The weight masked inside, bit-equal to before afterwards, whatever happens."""
    before = weight.detach().clone()
    try:
        weight.masked_fill_(~mask.to(weight.device), 0)
        yield
    finally:
        weight.copy_(before)


def _value(evaluate: Callable[[nn.Module], float], model: nn.Module, what: str) -> float:
    """What `evaluate` gives, as a finite float."""
    got: Any = evaluate(model)
    expected, way_out = "a finite number", "return e.g. loss.item()"
    try:
        value = float(got)
    except (TypeError, ValueError):
        raise bad_type(
            "sensitivity", f"evaluate's value of {what}", expected, type(got).__name__, way_out
        ) from None
    if not math.isfinite(value):
        raise bad("sensitivity", f"evaluate's value of {what}", expected, value, way_out)
    return value
