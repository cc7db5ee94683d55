"""A unit score less what the unit costs: FLOPs, memory or measured time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from sparseprune.criteria.interface import Criterion, Granularity, Stats, granularity_of, needs_of
from sparseprune.criteria.statistics.base import Found, Layer, Run, Statistic
from sparseprune.criteria.statistics.ranks import several, sum_over_ranks, together
from sparseprune.criteria.taylor_activation import TaylorActivation, by_layer_norm
from sparseprune.errors import bad, suggest
from sparseprune.profile import LayerProfile, profile

Resource: TypeAlias = str | Callable[[Layer, LayerProfile], float]

RESOURCES: dict[str, Callable[[LayerProfile], float]] = {
    "flops": lambda row: 2e-6 * row.macs,
    "memory": lambda row: 1e-6 * row.dense_bytes,
    "time": lambda row: row.latency_ms or 0.0,
}
"""Cost of a whole layer on one batch: MFLOP, MB of weights, milliseconds measured in the model."""


class UnitCost(Statistic):
    """R(h): cost of the layer / its units, as wide as the model is now: [units].

    FLOPs and time of one sample: the first batch's, divided by its samples. The mean of all ranks.
    """

    name = "unit_cost"

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    def measure(self, run: Run) -> Found:
        """From a profile on the first batch."""
        with together():
            costs = self._costs(run)
        sums = {
            (name, "cost"): torch.tensor(cost, dtype=torch.float64) for name, cost in costs.items()
        }
        sums = sum_over_ranks(sums, next(iter(run.layers.values())).weight.device)
        ranks = torch.distributed.get_world_size() if several() else 1
        return {
            n: (sums[n, "cost"] / ranks).to(layer.weight.device).expand(layer.weight.shape[0])
            for n, layer in run.layers.items()
        }

    def _costs(self, run: Run) -> dict[str, float]:
        """Weight name -> cost of one of its units."""
        batch = next(run.batches())
        inputs = batch.inputs if isinstance(batch.inputs, (tuple, list, dict)) else (batch.inputs,)
        rows = profile(run.model, inputs, latency=self.resource == "time").rows  # type: ignore[arg-type]
        by_name = {row.name: row for row in rows}
        paths = {module: name or "(model)" for name, module in run.model.named_modules()}
        costs = {}
        for name, layer in run.layers.items():
            used = [by_name[paths[m]] for m in layer.modules if paths[m] in by_name]
            cost = sum(self._cost(layer, row, batch.samples) for row in used)
            costs[name] = cost / max(1, layer.weight.shape[0])
        return costs

    def _cost(self, layer: Layer, row: LayerProfile, samples: int) -> float:
        if callable(self.resource):
            return self.resource(layer, row)
        cost = RESOURCES[self.resource](row)
        return cost if self.resource == "memory" else cost / samples


@dataclass(frozen=True)
class Regularised:
    """Theta(h) / ||Theta||_2 - strength * R(h), the norm over the layer. Higher is kept.

    (Molchanov et al., 2017, arXiv:1611.06440.)

    base: the unit criterion Theta. resource: what R counts per unit and sample, "flops" (MFLOP),
        "memory" (MB of weights), "time" (ms, measured here, divided over the layer's units), or a
        callable (layer, its row of `profile`) -> cost of the whole layer in any unit.
    strength: lambda, in 1 / unit of R; 1e-3 per MFLOP in the paper.
    Costs are those of the model as it is: prune in rounds to refresh them. Needs data, and what
    base needs; [units], float64. Raises ValueError for a base that does not score units.
    """

    base: Criterion = TaylorActivation()  # noqa: RUF009
    resource: Resource = "flops"
    strength: float = 1e-3
    granularity: Granularity = "unit"

    def __post_init__(self) -> None:
        if granularity_of(self.base) != "unit":
            way_out = "pass e.g. TaylorActivation() or FilterNorm()"
            got = f"one of {granularity_of(self.base)}s"
            raise bad("Regularised", "base", "a criterion of units", got, way_out)
        if not callable(self.resource) and self.resource not in RESOURCES:
            expected = f"{', '.join(map(repr, RESOURCES))} or a callable"
            way_out = suggest(self.resource, RESOURCES)
            raise bad("Regularised", "resource", expected, repr(self.resource), way_out)

    @property
    def needs(self) -> tuple[Callable[[], Statistic], ...]:
        """The base's, and the cost."""
        return (*needs_of(self.base), partial(UnitCost, self.resource))

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        theta = self.base(weight, stats) if needs_of(self.base) else self.base(weight)
        return by_layer_norm(theta.double()) - self.strength * stats["unit_cost"]
