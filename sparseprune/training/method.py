"""Method: what every training-time method does, from the first step to the masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad, bad_type
from sparseprune.masks import Masks
from sparseprune.selection import Ignore, prunable_weights

Same = TypeVar("Same", bound="Method")


class Method:
    """A method that makes weights small, gates or noisy while a model trains.

    ::

        method = sp.training.L1(1e-4).prepare(model, optimizer)
        for x, y in data:
            loss = criterion(model(x), y) + method.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        masks = method.finalize()

    `prepare` hangs the rest of the method on the optimizer's step, so that the loop stays as it is;
    gradients seen there are those of the step: with GradScaler unscaled, with accumulation summed,
    and a step that the scaler skips is none. Several methods may share a model and an optimizer.

    A subclass gives `_begin`, `_end` and what it needs of `penalty`, `_before_step`, `_after_step`.
    """

    def __init__(self, ignore: Ignore = ()) -> None:
        """ignore: modules to leave alone, as for `prune`."""
        self.ignore = ignore
        self._model: nn.Module | None = None
        self._optimizer: Optimizer | None = None
        self._handles: list[RemovableHandle] = []

    def prepare(self: Same, model: nn.Module, optimizer: Optimizer) -> Same:
        """Takes up `model` and the `optimizer` over its weights; returns self.

        model: as it trains; torch.compile and DistributedDataParallel are looked through.
        Raises ValueError or TypeError for what does not fit, before anything changes.
        """
        operation = f"{type(self).__name__}.prepare"
        if self._model is not None:
            way_out = "call finalize() first"
            raise bad(operation, "the method", "prepared once", "a second call", way_out)
        if not isinstance(optimizer, Optimizer):
            way_out = "pass the optimizer that trains the model"
            got = type(optimizer).__name__
            raise bad_type(operation, "optimizer", "a torch.optim.Optimizer", got, way_out)
        plain = unwrapped(model)
        self._begin(plain, optimizer)
        self._model, self._optimizer = plain, optimizer
        self._handles += [
            optimizer.register_step_pre_hook(self._on_gradients),
            optimizer.register_step_post_hook(self._on_weights),
        ]
        return self

    def penalty(self) -> Tensor:
        """What to add to the loss of this step: a scalar; 0 for methods without one.

        Raises ValueError before `prepare`.
        """
        model, _ = self._prepared("penalty")
        return torch.zeros((), device=next(model.parameters()).device)

    def finalize(self) -> Masks:
        """Ends it: the model is an ordinary one again, what is pruned is exact zero.

        Returns the masks. Raises ValueError before `prepare`.
        """
        self._prepared("finalize")
        masks = self._end()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._model = self._optimizer = None
        return masks

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Checks what it needs, then changes the model; on an error nothing has changed."""

    def _before_step(self) -> None:
        """Just before the optimizer's step: gradients are complete."""

    def _after_step(self) -> None:
        """Just after the optimizer's step: weights are new, gradients still there."""

    def _end(self) -> Masks:
        """Undoes what `_begin` did, prunes, and returns the masks of the zeros."""
        model, _ = self._prepared("finalize")
        return Masks.from_model(model, self.ignore)

    def _weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> weight of what the method acts on: at least one."""
        operation = f"{type(self).__name__}.prepare"
        weights = prunable_weights(model, self.ignore, operation)
        if not weights:
            got = f"none (ignore={self.ignore!r})"
            way_out = "pass such a model, or fewer names in ignore"
            raise bad(operation, "model", "one with weights to prune", got, way_out)
        return weights

    def _prepared(self, operation: str) -> tuple[nn.Module, Optimizer]:
        if self._model is None or self._optimizer is None:
            name, way_out = type(self).__name__, "call prepare(model, optimizer)"
            raise bad(f"{name}.{operation}", "the method", "prepared", "one that is not", way_out)
        return self._model, self._optimizer

    def _trained(self, model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        """Like `_weights`, for methods that change weights: an error if the optimizer lacks one.

        Frozen weights are among them, for they may thaw: ask `requires_grad` at every step.
        """
        weights = self._weights(model)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, weight in weights.items():
            if weight.requires_grad and id(weight) not in owned:
                way_out = f"build it from this model, with {name!r} in it, or ignore the name"
                operation = f"{type(self).__name__}.prepare"
                expected = "over all weights that train"
                raise bad(operation, "optimizer", expected, f"one without {name!r}", way_out)
        return weights

    @torch.no_grad()
    def _on_gradients(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        """The optimizer's hook before its step; a closure is followed by `_before_step`."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            if not _skipped(optimizer):
                _unscale(optimizer)
                self._before_step()
            return None

        def complete() -> Any:
            loss = closure()
            with torch.no_grad():
                self._before_step()
            return loss

        return args[:1], {**kwargs, "closure": complete}

    @torch.no_grad()
    def _on_weights(self, optimizer: Optimizer, *_: Any) -> None:
        """The optimizer's hook after its step."""
        if not _skipped(optimizer):
            self._after_step()


class Hook:
    """A hook on a module that stays behind, doing nothing, in copies and pickles of the module."""

    def __init__(self, act: Callable[..., None] | None) -> None:
        self.act = act

    def __call__(self, *args: Any) -> None:
        if self.act is not None:
            self.act(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (None,)


def check_strength(
    operation: str, value: object, most: float = math.inf, argument: str = "strength"
) -> float:
    """`value` as a float, or an error unless it is a finite number in [0, most]."""
    expected = "a finite number of at least 0" if most == math.inf else f"a number in [0, {most:g}]"
    way_out = "pass such a number"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise bad_type(operation, argument, expected, repr(value), way_out)
    if not 0 <= float(value) <= most or float(value) == math.inf:  # also for NaN
        raise bad(operation, argument, expected, value, way_out)
    return float(value)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler lets a fused optimizer skip this step; others it does not even call."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _unscale(optimizer: Optimizer) -> None:
    """Does for a fused optimizer under GradScaler what it would do itself later."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]
