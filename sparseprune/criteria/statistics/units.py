"""What each unit's activation does, and how the loss answers to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseprune.criteria.statistics.base import Layer, Observer, Step, Units
from sparseprune.criteria.statistics.curvature import derivative, signs_like


class UnitMean(Observer):
    """E[z] over samples and positions: [units]. z: see `Units`."""

    name = "unit_mean"
    uses_units = True

    def on_units(self, layer: Layer, units: Units) -> None:
        """Adds z."""
        z = units.by_unit().to(layer.dtype)
        self.add(layer.name, "sum", z.sum((0, 2)))
        self.add(layer.name, "count", z.shape[0] * z.shape[2])

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / count."""
        return sums["sum"] / sums["count"].to(sums["sum"])


class UnitTaylor(Observer):
    """E_n |mean_map(z * dC_n/dz)|: [units], the absolute value after the mean over positions.

    C_n is sample n's own loss: a loss that is the mean over a batch is scaled back by its samples.
    """

    name = "unit_taylor"
    uses_loss = True
    uses_units = True

    def on_units(self, layer: Layer, units: Units) -> None:
        """Counts the samples: a unit that the loss does not depend on has no gradient, and 0."""
        z = units.by_unit()
        self.add(layer.name, "sum", z.new_zeros(z.shape[1], dtype=layer.dtype))
        self.add(layer.name, "samples", z.shape[0])

    def on_unit_gradient(self, layer: Layer, units: Units, gradient: Tensor) -> None:
        """Adds one number per sample and unit."""
        product = units.by_unit().to(layer.dtype) * units.by_unit(gradient).to(layer.dtype)
        self.add(layer.name, "sum", self.of_sample(product * product.shape[0]).sum(0))

    def of_sample(self, product: Tensor) -> Tensor:
        """[samples, units, positions] -> [samples, units]"""
        return product.mean(2).abs()

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples."""
        return sums["sum"] / sums["samples"].to(sums["sum"])


class UnitGate(UnitTaylor):
    """-dC/dalpha at alpha = 1, alpha a factor on the whole unit: [units], signed.

    = -E_n sum_map(z * dC_n/dz).
    """

    name = "unit_gate"

    def of_sample(self, product: Tensor) -> Tensor:
        """The gate's derivative sums over positions."""
        return -product.sum(2)


class UnitCurvature(Observer):
    """E[z^T H z] per unit: d2C/dalpha2 at alpha = 1, alpha a factor on the unit. [units]

    By Hutchinson probes over units, as `HessianDiagonal`. ReLU networks with a loss that is linear
    in the output have none.
    """

    name = "unit_curvature"
    uses_loss = True
    uses_graph = True
    uses_units = True

    def __init__(self, probes: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.probes = probes
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes: list[Units] = []

    def on_units(self, layer: Layer, units: Units) -> None:
        """Remembers where the units of this call lie."""
        self.shapes.append(units)

    def on_step(self, step: Step) -> None:
        """Adds v_u z_u (H sum_w v_w z_w)_u of every probe."""
        assert step.loss is not None
        values = [value for _, value in step.activations]
        slopes = torch.autograd.grad(
            step.loss, values, create_graph=True, allow_unused=True, materialize_grads=True
        )
        for _ in range(self.probes):
            signs = signs_like([units.by_unit()[0, :, 0] for units in self.shapes], self.generator)
            along = [
                _spread(units, sign) * units.value.detach()
                for units, sign in zip(self.shapes, signs, strict=True)
            ]
            bent = derivative(slopes, values, along)
            for (name, _), units, a, b in zip(
                step.activations, self.shapes, along, bent, strict=True
            ):
                share = step.batch.samples / self.probes
                self.add(name, "sum", units.by_unit(a * b).double().sum((0, 2)) * share)
        for name in dict(step.activations):
            self.add(name, "samples", step.batch.samples)
        self.shapes.clear()

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples."""
        return (sums["sum"] / sums["samples"].to(sums["sum"])).to(layer.dtype)


def _spread(units: Units, per_unit: Tensor) -> Tensor:
    """One number per unit, shaped to multiply `units.value`."""
    spatial = len(getattr(units.module, "kernel_size", ()))
    return per_unit.reshape(-1, *[1] * spatial)
