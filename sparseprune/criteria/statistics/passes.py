"""One pass over the data for all observers of a criterion, and the pass before it if one asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.criteria.statistics.base import Found, Layer, Observer, Run, Statistic, Step, Units
from sparseprune.criteria.statistics.batches import Batch, call, length, loss_of
from sparseprune.criteria.statistics.following import Follower, first_tensor
from sparseprune.criteria.statistics.quiet import twice_differentiable, undisturbed
from sparseprune.criteria.statistics.ranks import rows_of_ranks, sum_over_ranks, together
from sparseprune.errors import bad
from sparseprune.progress import progress


def collect(run: Run, factories: Iterable[Callable[[], Statistic]]) -> dict[str, Found]:
    """Statistic name -> weight name -> tensor, for every statistic asked for.

    The model runs in eval mode and is left as it was. Under torch.distributed the sums are those
    of all ranks. Raises ValueError or TypeError for missing, empty or unusable data and loss, and
    for gradients that are not finite.
    """
    wanted = [factory() for factory in factories]
    early = {f().name: f() for statistic in wanted for f in statistic.requires}
    found: dict[str, Found] = {}
    stages = (list(early.values()), wanted)
    reads = sum(_reads(stage) for stage in stages)
    if reads > 1 and isinstance(run.data, Iterator):
        way_out = "pass a list, a DataLoader or a callable that makes the iterator"
        raise bad(run.operation, "data", f"readable {reads} times", "an iterator", way_out)
    with undisturbed(run.model, run.weights.values()):
        for stage in stages:
            for statistic in stage:
                statistic.known = found
            with together():
                _observe(run, [s for s in stage if isinstance(s, Observer)])
            _share(run, [s for s in stage if isinstance(s, Observer)])
            with together():
                new = {statistic.name: statistic.measure(run) for statistic in stage}
            found |= new
    return found


def _reads(stage: Sequence[Statistic]) -> int:
    """Passes over the data: one for all observers, and what the others make."""
    observed = any(isinstance(statistic, Observer) for statistic in stage)
    return observed + sum(statistic.reads for statistic in stage)


def _share(run: Run, observers: Sequence[Observer]) -> None:
    device = next(iter(run.layers.values())).weight.device
    for observer in observers:
        observer.sums = sum_over_ranks(observer.sums, device)
        observer.rows = rows_of_ranks(observer.rows)


def _observe(run: Run, observers: Sequence[Observer]) -> None:
    """Runs every batch once and tells the observers."""
    if not observers:
        return
    backward = any(observer.uses_loss for observer in observers)
    graph = any(observer.uses_graph for observer in observers)
    gradients = torch.enable_grad() if backward else torch.no_grad()
    with gradients, twice_differentiable() if graph else nullcontext():
        for batch in progress(run.batches(), f"{run.operation}: measuring", length(run.data)):
            single = any(observer.each_sample for observer in observers)
            for part in batch.split() if single else [batch]:
                step = _forward(run, part, observers)
                if backward:
                    _backward(step, graph)
                with _plain(run):
                    for observer in observers:
                        observer.on_step(step)


def _forward(run: Run, batch: Batch, observers: Sequence[Observer]) -> Step:
    step = Step(run, batch)
    with _listening(step, observers):
        step.output = call(run.model, batch.inputs)
        if any(observer.uses_loss for observer in observers):
            step.loss = loss_of(run.operation, step.output, batch, run.loss)
    return step


def _backward(step: Step, graph: bool) -> None:
    """The gradients of the step's loss; None becomes zero, and what is not finite an error."""
    assert step.loss is not None
    weights = step.run.weights
    gradients = torch.autograd.grad(
        step.loss, list(weights.values()), create_graph=graph, allow_unused=True
    )
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        step.gradients[name] = torch.zeros_like(weight) if gradient is None else gradient
        if not step.gradients[name].isfinite().all():
            wrong = int((~step.gradients[name].isfinite()).sum())
            what = f"gradient of the loss by {name!r}"
            got, way_out = f"{wrong} NaN or infinite values", "check the loss and the data"
            raise bad(step.run.operation, what, "finite", got, way_out)


@contextmanager
def _listening(step: Step, observers: Sequence[Observer]) -> Iterator[None]:
    """Hooks that tell the observers of inputs, unit activations and their gradients."""
    run = step.run

    def arrived(layer: Layer, units: Units) -> None:
        step.activations.append((layer.name, units.value))
        with _plain(run):
            for observer in observers:
                observer.on_units(layer, units)
        if units.value.requires_grad:
            units = Units(units.module, units.x.detach(), _kept(units.value), units.function)
            step.activations[-1][1].register_hook(lambda g: on_gradient(layer, units, g))

    def on_gradient(layer: Layer, units: Units, gradient: Tensor) -> None:
        with _plain(run):
            for observer in observers:
                observer.on_unit_gradient(layer, units, gradient)

    def on_input(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            with _plain(run):
                for observer in observers:
                    observer.on_input(layer, module, first_tensor(args, kwargs).detach())

        return hook

    with ExitStack() as stack:
        for layer in run.layers.values():
            for module in layer.modules:
                handle = module.register_forward_hook(on_input(layer), with_kwargs=True)
                stack.callback(handle.remove)
        if any(observer.uses_units for observer in observers):
            stack.enter_context(Follower(run.layers, arrived).watching())
        yield


def _kept(value: Tensor) -> Tensor:
    """The value as it is now, whatever a later layer writes into it."""
    return value.detach().clone()


@contextmanager
def _plain(run: Run) -> Iterator[None]:
    """Full precision inside: autocast is for the model, not for sums of what it gives."""
    kind = next(iter(run.layers.values())).weight.device.type
    with torch.autocast(kind, enabled=False):
        yield
