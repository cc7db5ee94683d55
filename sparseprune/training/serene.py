"""SeReNe: neurons that the outputs do not feel decay, with all their incoming weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from sparseprune.criteria.scoring import layers_of
from sparseprune.errors import bad, suggest
from sparseprune.selection import Ignore
from sparseprune.training.decay import OutputDecay
from sparseprune.training.method import Hook

VARIANTS = ("full", "lower_bound", "local")


class Serene(OutputDecay):
    """w_n <- w_n - eta * dL/dw_n - strength * w_n * [1 - S_n]_+, w_n all weights into neuron n.

    (Tartaglione et al., 2021, SeReNe, arXiv:2102.03773.) With p_n the pre-activation of neuron n,
    the layer's output before its nonlinearity, and C outputs y_k, the variants of S_n are

        full:        1 / C * sum_k |dy_k/dp_n|      C backward passes more per step
        lower_bound: 1 / C * |sum_k dy_k/dp_n|      one more; never above "full"
        local:       [p_n > 0]                      none; the slope of a ReLU right behind the layer

    each for every sample (and every place of a feature map, whose channels are the neurons) and
    then the mean over samples and places. The authors' code (github.com/EIDOSLAB/SeReNe) does so
    for "lower_bound"; its "full" has another factor 1 / samples, and its "local" takes the mean of
    p_n first. Batch norm in training mode lets a sample's p_n act on other samples: counted too.

    The neurons of the last layer are y itself, S = 1 / C: put it into `ignore` to spare it.
    """

    def __init__(self, strength: float, variant: str = "full", ignore: Ignore = ()) -> None:
        """variant: one of the above."""
        super().__init__(strength, ignore)
        if variant not in VARIANTS:
            expected = f"one of {', '.join(map(repr, VARIANTS))}"
            raise bad("Serene", "variant", expected, repr(variant), suggest(variant, VARIANTS))
        self.variant = variant
        self._seen: list[tuple[str, int, Any]] = []

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super()._begin(model, optimizer)
        self._handles.append(model.register_forward_pre_hook(Hook(self._forget)))
        for name, layer in layers_of(model, self._targets).items():
            for module in layer.modules:
                axis = 1 + len(getattr(module, "kernel_size", ()))
                see = Hook(partial(self._see, name, axis))
                self._handles.append(module.register_forward_hook(see))

    def _forget(self, *_: Any) -> None:
        self._seen.clear()

    def _see(self, name: str, axis: int, module: nn.Module, args: Any, p: Tensor) -> None:
        """Notes the pre-activation of a layer; its neurons lie `axis` places from the end."""
        model, _ = self._prepared("forward")
        if not model.training or not torch.is_grad_enabled():
            return
        if self.variant == "local":
            self._seen.append((name, axis, _per_neuron((p > 0).to(torch.float32), axis)))
        elif p.requires_grad:
            # the edge, not the tensor: an in-place nonlinearity may overwrite that
            self._seen.append((name, axis, get_gradient_edge(p)))

    def _measure(self, y: Tensor) -> None:
        if self.variant == "local":
            for name, _, sensitivity in self._seen:
                self._add(name, sensitivity)
        else:
            self._differentiate(y)
        self._seen.clear()

    def _differentiate(self, y: Tensor) -> None:
        """Adds S of "full" or "lower_bound"."""
        edges = [edge for _, _, edge in self._seen]
        totals: list[Tensor | None] = [None] * len(edges)
        sums = y.sum(0)  # sample by sample: no other sample's p_n acts on a sample's y
        for output in sums if self.variant == "full" else [sums.sum()]:
            slopes = torch.autograd.grad(output, edges, retain_graph=True, allow_unused=True)
            for i, ((_, axis, _), slope) in enumerate(zip(self._seen, slopes, strict=True)):
                if slope is not None:
                    mean = _per_neuron(slope.abs(), axis) / y.shape[1]
                    before = totals[i]
                    totals[i] = mean if before is None else before + mean
        for (name, _, _), total in zip(self._seen, totals, strict=True):
            self._add(name, self._zero(self._targets[name]) if total is None else total)

    def _sensitivity(self, name: str, weight: nn.Parameter) -> Tensor | None:
        neurons = super()._sensitivity(name, weight)
        return None if neurons is None else neurons.reshape(-1, *[1] * (weight.dim() - 1))

    def _zero(self, weight: Tensor) -> Tensor:
        return super()._zero(weight.detach().flatten(1)[:, 0])


def _per_neuron(value: Tensor, axis: int) -> Tensor:
    """The mean over all dimensions but that `axis` places from the end: [neurons]."""
    value = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    return value.movedim(-axis, 0).reshape(value.shape[-axis], -1).mean(1)
