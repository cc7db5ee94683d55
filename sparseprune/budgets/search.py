"""prune_to: the least pruning that meets a budget of parameters, MACs or milliseconds."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from sparseprune import patterns
from sparseprune.budgets.costs import COSTS, UNITS
from sparseprune.budgets.sensitivity import Sensitivity
from sparseprune.criteria import Criterion
from sparseprune.criteria.statistics import Data, Loss
from sparseprune.errors import bad, suggest
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern
from sparseprune.progress import status
from sparseprune.prune import Sparsity, rank, targets
from sparseprune.selection import Ignore

MOST = 0.9999
"""The highest sparsity that the search tries."""

STEPS = {"parameters": 1 << 20, "macs": 1 << 20, "latency": 1 << 6}
"""How finely the search looks: about log2 of this many trials, each a conversion for latency."""


@dataclass(frozen=True)
class Budgeted:
    """What `prune_to` did.

    masks: applied to the model. sparsity: what they were made with, one share or one per layer.
    cost, dense: of the pruned and the dense model, in `unit` ("parameters", "MACs" or "ms").
    target: what `cost` was to meet, in the same unit.
    """

    masks: Masks
    sparsity: Sparsity
    cost: float
    dense: float
    target: float
    unit: str

    @property
    def ratio(self) -> float:
        """cost / dense."""
        return self.cost / self.dense if self.dense else 0.0

    def __str__(self) -> str:
        numbers = (self.cost, self.target, self.dense)
        cost, target, dense = (f"{n:.3f}" if self.unit == "ms" else f"{n:,.0f}" for n in numbers)
        return (
            f"{cost} {self.unit} of {dense} ({self.ratio:.1%}), asked for {target}; "
            f"sparsity {self.masks.sparsity():.2%}"
        )


def prune_to(
    model: nn.Module,
    budget: str,
    target: float,
    example_inputs: Tensor | tuple[Any, ...] | dict[str, Any] | None = None,
    *,
    unit: str = "ratio",
    criterion: str | Criterion = "magnitude",
    scope: str = "global",
    pattern: str | Pattern = "unstructured",
    ignore: Ignore = (),
    data: Data | None = None,
    loss: Loss | None = None,
    sensitivity: Sensitivity | None = None,
) -> Budgeted:
    """Prunes `model`, in place, as little as meets a budget; says what was achieved.

    ::

        sp.prune_to(model, "macs", 0.25, x)  # a quarter of the dense MACs
        sp.prune_to(model, "latency", 3.0, x, unit="absolute")  # 3 ms after convert

    budget: "parameters" (nonzero ones of the whole model), "macs" (with nonzero weights, in one
        forward pass), or "latency" (measured: the model is pruned, converted with `convert` and
        timed, about seven times).
    target: of the dense model's cost, in (0, 1); with unit="absolute" a number of parameters or
        MACs, or milliseconds.
    example_inputs: what the model is called with; for "macs" and "latency".
    criterion, scope, pattern, ignore, data, loss: as for `prune`; scored once. Scope "global"
        gives each layer its own sparsity by one threshold, "local" the same to all.
    sensitivity: a scan (`sp.sensitivity`): then every layer is pruned as far as alone makes the
        model equally worse, and that is what the search turns up; `scope` is not read.

    The model changes only at the end. Latencies are medians and vary: what is returned is what was
    measured. Raises ValueError or TypeError for bad arguments, and for a target out of reach.
    """
    limit = _check(budget, target, unit, example_inputs, scope, sensitivity)
    _, weights = targets(model, 0.0, ignore, "prune_to")
    legal = patterns.resolve(pattern, "prune_to")
    ranked = rank(model, weights, criterion, scope, legal, data, loss, "prune_to")
    cost = COSTS[budget](model, example_inputs)
    plan = _plans(legal, STEPS[budget], sensitivity, set(weights))

    @cache
    def tried(step: int) -> tuple[float, float]:
        say(f"prune_to {budget}: trial {tried.cache_info().misses + 1}")
        with warnings.catch_warnings():  # floors are named when the model is pruned, once
            warnings.simplefilter("ignore")
            return cost(ranked.masks(plan(step)))

    def meets(step: int) -> bool:
        reached, dense = tried(step)
        return reached <= (limit * dense if unit == "ratio" else limit)

    with status("prune_to") as say:
        step = _first(range(STEPS[budget] + 1), meets)
    if step is None:
        reached, dense = tried(STEPS[budget])
        way_out = "raise it, ignore fewer layers, or scan to higher sparsities"
        got = f"{target:g} where the least is {reached / dense if unit == 'ratio' else reached:g}"
        raise bad("prune_to", "target", f"within reach of {budget}", got, way_out)
    share = plan(step)
    masks = ranked.prune_(model, share)
    reached, dense = tried(step)
    return Budgeted(
        masks, share, reached, dense, limit * dense if unit == "ratio" else limit, UNITS[budget]
    )


def _first(steps: range, meets: Callable[[int], bool]) -> int | None:
    """The first step that meets the budget, None if the last one does not."""
    return bisect_left(steps, True, key=meets) if meets(steps[-1]) else None


def _check(
    budget: str, target: float, unit: str, inputs: Any, scope: str, scan: Sensitivity | None
) -> float:
    """The target as a float, or an error for what does not fit."""
    if budget not in COSTS:
        expected = " or ".join(map(repr, COSTS))
        way_out = f"{suggest(budget, COSTS)}; for a sparsity call prune"
        raise bad("prune_to", "budget", expected, repr(budget), way_out)
    if unit not in ("ratio", "absolute"):
        way_out = suggest(unit, ("ratio", "absolute"))
        raise bad("prune_to", "unit", "'ratio' or 'absolute'", repr(unit), way_out)
    most = 1 if unit == "ratio" else math.inf
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < most:
        expected = "between 0 and 1" if unit == "ratio" else "above 0"
        way_out = "0.5 is half of the dense cost; pass unit='absolute' for a number or ms"
        raise bad("prune_to", "target", expected, repr(target), way_out)
    if inputs is None and budget != "parameters":
        way_out = "pass what the model is called with"
        raise bad("prune_to", "example_inputs", f"given for {budget!r}", "none", way_out)
    if scan is not None and not isinstance(scan, Sensitivity):
        way_out = "pass what sp.sensitivity returns"
        raise bad("prune_to", "sensitivity", "a Sensitivity", type(scan).__name__, way_out)
    return float(target)


def _plans(
    legal: Pattern, steps: int, scan: Sensitivity | None, names: set[str]
) -> Callable[[int], float | Mapping[str, float]]:
    """Step 0..steps -> a sparsity for `prune`, rising from none (or the pattern's own)."""
    if scan is None:
        least = getattr(legal, "least_sparsity", 0.0)
        return lambda step: least + (MOST - least) * step / steps
    marks = sorted({0.0, *(max(0.0, point.worse) for point in scan.points)})

    def plan(step: int) -> dict[str, float]:
        if step == 0:
            return {}
        # equal steps from mark to mark: losses of a scan span orders of magnitude
        place = step / steps * (len(marks) - 1)
        low = min(int(place), len(marks) - 1)
        high = min(low + 1, len(marks) - 1)
        worse = marks[low] + (place - low) * (marks[high] - marks[low])
        return {name: share for name, share in scan.within(worse).items() if name in names}

    return plan
