"""Decay of what is insensitive: the step that three methods share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.criteria.statistics.ranks import several
from sparseprune.errors import bad, bad_type
from sparseprune.selection import Ignore
from sparseprune.training.method import Hook, Method, check_strength


class InsensitiveDecay(Method):
    """w <- w - strength * w * [1 - S]_+ with every step of the optimizer, S the sensitivity.

    Applied to the weight that the gradient was taken at, as the papers' update rules have it, so
    just before the step. No learning rate enters: let `strength` fall with yours, or the last steps
    of a schedule only decay. Weights only, no biases; frozen ones stay as they are. Weights come
    near zero, not to it: see `Plateau`, or prune.
    """

    def __init__(self, strength: float, ignore: Ignore = ()) -> None:
        """strength: lambda in [0, 1], e.g. 1e-4; may be assigned anew while training.

        ignore: modules to leave alone, as for `prune`.
        """
        super().__init__(ignore)
        self.strength = check_strength(type(self).__name__, strength, most=1)
        self._targets: dict[str, nn.Parameter] = {}

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._targets = self._trained(model, optimizer)

    def _before_step(self) -> None:
        for name, weight in self._targets.items():
            sensitivity = self._sensitivity(name, weight) if weight.requires_grad else None
            if sensitivity is not None:
                weight.sub_(weight * (self.strength * (1 - sensitivity).clamp(min=0)))

    def _sensitivity(self, name: str, weight: nn.Parameter) -> Tensor | None:
        """S of a weight in this step, that broadcasts to it; None where nothing is known."""
        raise NotImplementedError


class OutputDecay(InsensitiveDecay):
    """A decay whose S is a derivative of the model's outputs, measured in every forward pass.

    Counted are passes of the whole model in training mode with gradients enabled; S is their mean
    since the last step, and the mean over the ranks of torch.distributed.
    The model's output must be a tensor [samples, outputs], or have one as `.logits`.
    """

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super()._begin(model, optimizer)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._handles.append(model.register_forward_hook(Hook(self._on_output)))

    def _on_output(self, model: nn.Module, args: Any, output: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self._measure(_outputs(f"{type(self).__name__}, forward", output))

    @abstractmethod
    def _measure(self, y: Tensor) -> None:
        """Calls `_add` for the weights; y: [samples, outputs], float32 or more, with its graph."""

    def _add(self, name: str, sensitivity: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + sensitivity
        self._counts[name] = self._counts.get(name, 0) + 1

    def _before_step(self) -> None:
        if not self._counts and not several():
            expected, got = "run in training mode before each step", "no such forward pass"
            way_out = "call the model itself, with gradients, between two steps"
            raise bad(f"{type(self).__name__}, step", "the model", expected, got, way_out)
        super()._before_step()
        self._sums.clear()
        self._counts.clear()

    def _sensitivity(self, name: str, weight: nn.Parameter) -> Tensor | None:
        count = self._counts.get(name, 0)
        if not several():
            return self._sums[name] / count if count else None
        # every rank takes part for every weight, in the same order
        total = self._sums[name] if count else self._zero(weight)
        counts = torch.tensor(float(count), device=weight.device)
        dist.all_reduce(total)
        dist.all_reduce(counts)
        return total / counts if counts else None

    def _zero(self, weight: Tensor) -> Tensor:
        """A sensitivity of 0 for this weight, as `_add` takes it."""
        return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _outputs(operation: str, output: Any) -> Tensor:
    """[samples, outputs] of what the model returned, at least float32."""
    y = getattr(output, "logits", output)
    expected = "a tensor [samples, outputs] that depends on the weights"
    way_out = "wrap the model in one that returns its class scores, and prepare that"
    if not isinstance(y, Tensor):
        raise bad_type(operation, "the model's output", expected, type(y).__name__, way_out)
    if y.dim() != 2 or not y.requires_grad:
        got = f"shape {tuple(y.shape)}, requires_grad={y.requires_grad}"
        raise bad(operation, "the model's output", expected, got, way_out)
    return y.to(torch.promote_types(y.dtype, torch.float32))
