"""Rewind: a training as it was at one step, to go back to."""

from __future__ import annotations

import copy
import random
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad, bad_type
from sparseprune.masks import Masks


@runtime_checkable
class Stateful(Protocol):
    """An LR scheduler, a GradScaler, a sampler: what has a state to go back to."""

    def state_dict(self) -> dict[str, Any]:
        """The state now."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Back to that state."""


class Rewind:
    """A snapshot of a training, taken when it is made; `restore_` goes back as often as wanted.

    ::

        rewind = Rewind(model, optimizer, scheduler)  # at step k
        ...                                           # train to the end, make masks
        rewind.restore_(masks)                        # the ticket at step k

    Holds every parameter and buffer (batch norm's running statistics as well), the state of the
    optimizer with its learning rates, of what else is given, and the random states of Python, numpy
    and torch on CPU and GPUs. So a training that is deterministic goes on bit-equal, if its data
    order follows from the step or from those random states; other generators are given.
    (Frankle et al., 2020, arXiv:1912.05671: rewinding to step k; k = 0 is Frankle & Carbin, 2019,
    arXiv:1803.03635.)
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *others: Stateful | torch.Generator | None
    ) -> None:
        """
        model: torch.compile and DistributedDataParallel are looked through.
        others: an LR scheduler, a GradScaler, a sampler with state, a torch.Generator; None is
            passed over.

        Raises TypeError for what has no state.
        """
        if not isinstance(optimizer, Optimizer):
            got, way_out = type(optimizer).__name__, "pass the optimizer that trains the model"
            raise bad_type("Rewind", "optimizer", "a torch.optim.Optimizer", got, way_out)
        self.model, self.optimizer = unwrapped(model), optimizer
        self.others = [other for other in others if other is not None]
        for other in self.others:
            if not isinstance(other, Stateful | torch.Generator):
                expected = "with state_dict and load_state_dict, or torch.Generators"
                way_out = "leave it out, or give it both methods"
                raise bad_type("Rewind", "others", expected, type(other).__name__, way_out)
        self._values = {n: v.detach().clone() for n, v in _tensors(self.model).items()}
        self._states = [copy.deepcopy(_state(holder)) for holder in [optimizer, *self.others]]
        self._random = _random_states()

    def restore_(self, masks: Masks | None = None) -> None:
        """All as it was; with masks, pruned weights and the optimizer's state of them are zero.

        To keep them zero, train inside `with masks.attach(model, optimizer):`. Gradients are gone.
        Raises ValueError if masks or model do not fit, before anything changes.
        """
        tensors = _tensors(self.model)
        for name in [*self._values, *tensors]:
            known, found = self._values.get(name), tensors.get(name)
            if known is None or found is None or known.shape != found.shape:
                expected, way_out = "as it was, but for its values", "make the snapshot anew"
                raise bad("Rewind.restore_", "model", expected, f"a change of {name!r}", way_out)
        if masks is not None:
            masks.attach(self.model, self.optimizer).detach()  # an error now rather than halfway
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(self._values[name])
        for holder, state in zip([self.optimizer, *self.others], self._states, strict=True):
            _load(holder, copy.deepcopy(state))  # optimizers keep the tensors they are given
        self.optimizer.zero_grad()
        if masks is not None:
            masks.attach(self.model, self.optimizer).detach()
        _set_random_states(self._random)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _state(holder: Any) -> Any:
    return holder.get_state() if isinstance(holder, torch.Generator) else holder.state_dict()


def _load(holder: Any, state: Any) -> None:
    if isinstance(holder, torch.Generator):
        holder.set_state(state)
    else:
        holder.load_state_dict(state)


def _random_states() -> tuple[Any, ...]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def _set_random_states(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, gpus = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
