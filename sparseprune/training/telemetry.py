"""Telemetry: how weights move while a model trains, and above all early on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.errors import check_count
from sparseprune.selection import Ignore
from sparseprune.training.method import Method


@dataclass(frozen=True)
class Sample:
    """One weight after one step; w_0 is what it was at `prepare`.

    magnitude: mean |w|. signs: the share of weights whose sign differs from that in w_0.
    distance: ||w - w_0||_2. cosine: of the angle between w and w_0, 1 where one is zero.
    gradient: mean |dL/dw| of the step, 0 without one.
    """

    step: int
    name: str
    magnitude: float
    signs: float
    distance: float
    cosine: float
    gradient: float


class Telemetry(Method):
    """Records mean |w|, sign changes, ||w - w_0||_2, cos(w, w_0) and mean |dL/dw| of every weight.

    (Frankle, Schwab & Morcos, 2020, The early phase of neural network training, arXiv:2002.10365,
    section 4: where rewinding begins to work.) Changes nothing; several methods may run beside it.

    Attributes:
        samples: a `Sample` per weight for `prepare` (step 0) and for every `every`-th step.
    """

    def __init__(self, every: int = 1, ignore: Ignore = ()) -> None:
        """every: steps from one sample to the next. ignore: modules to leave out."""
        super().__init__(ignore)
        check_count("Telemetry", "every", every)
        self.every = every
        self.samples: list[Sample] = []

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._first = {name: w.detach().clone() for name, w in self._weights(model).items()}
        self._now = self._weights(model)
        self._steps = 0
        self.samples = []
        self._record()

    def _after_step(self) -> None:
        self._steps += 1
        if self._steps % self.every == 0:
            self._record()

    @torch.no_grad()
    def _record(self) -> None:
        for name, weight in self._now.items():
            first, now = self._first[name].double(), weight.detach().double()
            gradient = weight.grad if self._steps else None
            self.samples.append(
                Sample(
                    self._steps,
                    name,
                    float(now.abs().mean()),
                    float((now.sign() != first.sign()).double().mean()),
                    float((now - first).norm()),
                    _cosine(now, first),
                    0.0 if gradient is None else float(gradient.double().abs().mean()),
                )
            )


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms else 1.0
