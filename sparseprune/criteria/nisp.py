"""NISP: importance handed back from the last responses through |W|."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.base import Found, Layer, Run, Statistic, Units
from sparseprune.criteria.statistics.batches import call
from sparseprune.criteria.statistics.following import Follower
from sparseprune.criteria.statistics.positive import Positive
from sparseprune.errors import bad, bad_type


class PropagatedImportance(Statistic):
    """d(seed . output) / dz of the positive network, summed over positions: [units], float64."""

    name = "propagated_importance"

    def __init__(self, seed: Tensor | None) -> None:
        self.seed = seed

    def measure(self, run: Run) -> Found:
        """One forward and backward pass of one sample."""
        reached: list[tuple[str, Units]] = []

        def arrived(layer: Layer, units: Units) -> None:
            reached.append((layer.name, units))

        first = next(next(run.batches()).split())
        inputs = tree_map(_exact, first.inputs)
        with torch.enable_grad():
            with Positive(run, mean_pool=True), Follower(run.layers, arrived).watching():
                output = call(run.model, inputs)
            response = (output * self._seed(run, output)).sum()
        values = [units.value for _, units in reached]
        slopes = torch.autograd.grad(response, values, allow_unused=True, materialize_grads=True)
        found: Found = {}
        for (name, units), slope in zip(reached, slopes, strict=True):
            scores = units.by_unit(slope).sum((0, 2))
            found[name] = found[name] + scores if name in found else scores
        missing = [name for name in run.layers if name not in found]
        if missing:
            way_out = "add them to ignore"
            got = f"no call of {', '.join(missing)}"
            raise bad(run.operation, "layers", "called by the model", got, way_out)
        return found

    def _seed(self, run: Run, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            way_out = "wrap the model so that it returns one tensor"
            got = type(output).__name__
            raise bad_type(run.operation, "the model's output", "a tensor", got, way_out)
        if self.seed is None:
            return torch.ones_like(output)
        if self.seed.dim() != 1 or self.seed.numel() != output.shape[-1]:
            expected, way_out = f"[{output.shape[-1]}]", "pass one importance per response"
            raise bad(run.operation, "seed", expected, tuple(self.seed.shape), way_out)
        return self.seed.to(output)


def _exact(leaf: Any) -> Any:
    """float64 for what is not an index: products of many layers leave float32."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


@dataclass(frozen=True)
class NISP:
    """s_k = |W_{k+1}|^T s_{k+1}, s at the output = seed. Higher is kept.

    (Yu et al., 2018, arXiv:1711.05908.) A convolution hands back |W| summed over its
    kernel, position by position, and a channel's score is the sum over its positions. Rules for
    the rest (see `Positive`): nonlinearities hand on as they are, batch norm times |gamma| / sigma,
    max and mean pooling in equal shares, sums to every branch.

    seed: importance of each output, [outputs]; ones by default. The paper ranks the responses
        before the classifier by a feature selection of its own: pass that, with a model that ends
        there. Needs data for the shape of one sample, no loss; [units], float64. Raises ValueError
        for a model with other functions, such as attention.
    """

    seed: Tensor | None = None
    granularity: Granularity = "unit"

    @property
    def needs(self) -> tuple[partial[PropagatedImportance]]:
        """The propagation."""
        return (partial(PropagatedImportance, self.seed),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        return stats["propagated_importance"]
