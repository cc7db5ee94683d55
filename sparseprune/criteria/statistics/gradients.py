"""First derivatives of the loss by the weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseprune.criteria.statistics.base import Layer, Observer, Step


class Gradient(Observer):
    """E[g], g = dL/dw: the gradient of the mean loss over all samples. Shape of the weight.

    Each batch counts by its number of samples, so that the mean is over samples where `loss` is
    the mean over its batch. Every use of a tied weight contributes.
    """

    name = "gradient"
    uses_loss = True

    def on_step(self, step: Step) -> None:
        """Adds the batch's gradient, times its samples."""
        for name, gradient in step.gradients.items():
            self.add(name, "sum", self.part(gradient.to(step.run.layers[name].dtype)) * _n(step))
            self.add(name, "samples", _n(step))

    def part(self, gradient: Tensor) -> Tensor:
        """What is averaged."""
        return gradient

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples."""
        return mean(sums)


class SquaredGradient(Gradient):
    """E[g^2] over single samples: the diagonal of the empirical Fisher information.

    Each sample is run by itself, `loss` given that sample alone: exact for any model and loss.
    """

    name = "squared_gradient"
    each_sample = True

    def part(self, gradient: Tensor) -> Tensor:
        """g^2"""
        return gradient.square()


class AbsoluteGradient(Gradient):
    """E|g| over single samples; each sample is run by itself."""

    name = "absolute_gradient"
    each_sample = True

    def part(self, gradient: Tensor) -> Tensor:
        """|g|"""
        return gradient.abs()


def mean(sums: Mapping[str, Tensor]) -> Tensor:
    """sums["sum"] / sums["samples"]"""
    total = sums["sum"]
    return total / sums["samples"].to(total)


def _n(step: Step) -> int:
    return step.batch.samples
