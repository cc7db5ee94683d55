"""The oracle: remove every unit in turn and see what the loss does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.base import Found, Layer, Run, Statistic, Units
from sparseprune.criteria.statistics.batches import Batch, call, loss_of
from sparseprune.criteria.statistics.following import Follower
from sparseprune.criteria.statistics.ranks import Sums, sum_over_ranks, together
from sparseprune.errors import bad
from sparseprune.progress import progress


class Prefix:
    """Outputs of a model's innermost modules on one batch, served again up to a given call.

    Work before the removed unit is done once: modules that come earlier return what they returned
    then. Functions between modules run again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._leaves = [m for m in model.modules() if not any(True for _ in m.children())]
        self._outputs: list[Any] = []
        self._place = 0
        self._served = 0
        self.after: dict[nn.Module, int] = {}
        """Module -> calls of any module up to its own first one, included."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record and serve inside; modules are their own again when it ends."""
        own = {m: m.__dict__["forward"] for m in self._leaves if "forward" in m.__dict__}
        try:
            for module in self._leaves:
                module.forward = self._serve(module, module.forward)
            yield
        finally:
            for module in self._leaves:
                module.__dict__.pop("forward", None)
            for module, forward in own.items():
                module.forward = forward

    def record(self) -> None:
        """The next run is computed, and remembered."""
        self._outputs, self._place, self._served = [], 0, 0
        self.after = {}

    def serve(self, calls: int) -> None:
        """In the next run the first `calls` calls are served from memory."""
        self._place, self._served = 0, calls

    def _serve(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            place, self._place = self._place, self._place + 1
            if place < self._served:
                return _copy(self._outputs[place])
            output = forward(*args, **kwargs)
            if place == len(self._outputs):
                self._outputs.append(_copy(output))
                self.after.setdefault(module, place + 1)
            return output

        return run


def _copy(output: Any) -> Any:
    """Later layers may write into what they are given."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)


class LossChange(Statistic):
    """C(without unit) - C, C the mean loss, the unit's activation set to zero: [units]."""

    name = "loss_change"

    def measure(self, run: Run) -> Found:
        """One run of what comes after the layer for every unit and batch."""
        sums: Sums = {}
        with together(), torch.no_grad():
            prefix = Prefix(run.model)
            with prefix.watching():
                for batch in run.batches():
                    for name, change in self._changes(run, prefix, batch).items():
                        for key, value in (
                            ("change", change * batch.samples),
                            ("samples", change.new_tensor(batch.samples)),
                        ):
                            sums[name, key] = sums.get((name, key), 0) + value
        device = next(iter(run.layers.values())).weight.device
        sums = sum_over_ranks(sums, device)
        return {name: sums[name, "change"] / sums[name, "samples"] for name in run.layers}

    def _changes(self, run: Run, prefix: Prefix, batch: Batch) -> Found:
        """The change of this batch's loss, for every unit of every layer."""
        prefix.record()
        whole = loss_of(run.operation, call(run.model, batch.inputs), batch, run.loss).double()
        found = {
            n: layer.weight.new_zeros(layer.weight.shape[0], dtype=torch.float64)
            for n, layer in run.layers.items()
        }
        units = [(layer, unit) for n, layer in run.layers.items() for unit in range(len(found[n]))]
        for layer, unit in progress(units, f"{run.operation}: removing units"):
            calls = [prefix.after[m] for m in layer.modules if m in prefix.after]
            if not calls:
                way_out = "add the layer to ignore"
                raise bad(run.operation, f"layer of {layer.name!r}", "called", "no call", way_out)
            prefix.serve(min(calls))
            with Follower({layer.name: layer}, partial(_silence, unit)).watching():
                output = call(run.model, batch.inputs)
            loss = loss_of(run.operation, output, batch, run.loss).double()
            found[layer.name][unit] = loss - whole
        return found


def _silence(unit: int, layer: Layer, units: Units) -> None:
    """Sets one unit's activation to zero, before the next layer reads it."""
    axis = -1 if layer.is_linear else -1 - len(units.module.kernel_size)  # type: ignore[arg-type]
    units.value.select(axis, unit).zero_()


@dataclass(frozen=True)
class Oracle:
    """C(W without unit) - C(W), C the mean loss over the data. Higher is kept.

    Exhaustive: one run per unit and batch, from the unit's layer on (what comes before is
    remembered). The unit's activation after batch norm and nonlinearity is set to zero. Negative
    where the network is better without. (Molchanov et al., 2017, arXiv:1611.06440)

    absolute: rank by |C(W without unit) - C(W)|, the paper's oracle-abs, which it prefers.
    Needs data and a loss; [units], float64.
    """

    absolute: bool = False
    granularity: Granularity = "unit"
    needs = (LossChange,)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        change = stats["loss_change"]
        return change.abs() if self.absolute else change
