"""Second derivatives of the loss by the weights, through products with vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseprune.criteria.statistics.base import Layer, Observer, Run, Step
from sparseprune.criteria.statistics.gradients import mean
from sparseprune.errors import bad


def derivative(
    value: Sequence[Tensor], by: Sequence[Tensor], along: Sequence[Tensor]
) -> list[Tensor]:
    """sum_i (d value_i / d by)^T along_i for each of `by`; the graph stays.

    Zeros for what does not depend on it, e.g. the gradient of a linear loss.
    """
    live = [(v, a.to(v.dtype)) for v, a in zip(value, along, strict=True) if v.requires_grad]
    if not live:
        return [torch.zeros_like(b) for b in by]
    values, alongs = zip(*live, strict=True)
    found = torch.autograd.grad(values, list(by), alongs, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(b) if f is None else f.detach() for b, f in zip(by, found, strict=True)
    ]


def signs_like(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Independent +1 and -1 of the tensors' shapes; the same on every device and rank."""
    return [
        torch.randint(2, t.shape, generator=generator).mul_(2).sub_(1).to(t.device, t.dtype)
        for t in tensors
    ]


class HessianDiagonal(Observer):
    """diag H ~ E_v[v * (H v)], v = +-1 (Hutchinson), H of the mean loss. Shape of the weight.

    Unbiased; the error falls with 1 / sqrt(probes * batches), and is zero for a diagonal H. May
    be negative. Bekas, Kokiopoulou & Saad (2007, An
    estimator for the diagonal of a matrix).
    """

    name = "hessian_diagonal"
    uses_loss = True
    uses_graph = True

    def __init__(self, probes: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.probes = probes
        self.generator = torch.Generator().manual_seed(seed)

    def on_step(self, step: Step) -> None:
        """Adds v * (H v) of every probe."""
        weights = list(step.run.weights.values())
        for _ in range(self.probes):
            signs = signs_like(weights, self.generator)
            products = self.product(step, weights, signs)
            for name, sign, product in zip(step.run.layers, signs, products, strict=True):
                dtype = step.run.layers[name].dtype
                share = step.batch.samples / self.probes
                self.add(name, "sum", sign.to(dtype) * product.to(dtype) * share)
        for name in step.run.layers:
            self.add(name, "samples", step.batch.samples)

    def product(
        self, step: Step, weights: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """H v"""
        return derivative(list(step.gradients.values()), weights, vector)

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples."""
        return mean(sums)


class GaussNewtonDiagonal(HessianDiagonal):
    """diag(J^T H_L J), J = d output / dw, H_L = d2L / d output2, by the same probes.

    The Hessian without the second derivatives of the network: never negative in expectation, and
    exact where the output is linear in the weights. The model must return a tensor, or an object
    with `.logits` from which the loss is made. Schraudolph (2002, doi:10.1162/08997660260028683).
    """

    name = "gauss_newton_diagonal"

    def product(
        self, step: Step, weights: Sequence[Tensor], vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """J^T H_L J v; J v is the derivative of J^T u by u along v."""
        assert step.loss is not None
        output = _response(step)
        (slope,) = torch.autograd.grad(step.loss, [output], create_graph=True)
        u = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(
            output, weights, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        (pushed,) = derivative(pulled, [u], vector)
        (bent,) = derivative([slope], [output], [pushed])
        return derivative([output], weights, [bent])


class HessianGradient(Observer):
    """H g, with g = E[g] over all data from a first pass. Shape of the weight."""

    name = "hessian_gradient"
    uses_loss = True
    uses_graph = True

    def on_step(self, step: Step) -> None:
        """Adds the batch's H g."""
        weights = list(step.run.weights.values())
        mean_gradient = [self.known["gradient"][name] for name in step.run.layers]
        products = derivative(list(step.gradients.values()), weights, mean_gradient)
        for (name, layer), product in zip(step.run.layers.items(), products, strict=True):
            self.add(name, "sum", product.to(layer.dtype) * step.batch.samples)
            self.add(name, "samples", step.batch.samples)

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples."""
        return mean(sums)


class HessianBlock(Observer):
    """d2L / dw2 of the mean loss over all pairs of entries of one weight: [n, n], n = numel.

    n backward passes a batch and n^2 numbers: refused above `limit` entries.
    """

    name = "hessian_block"
    uses_loss = True
    uses_graph = True

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def on_step(self, step: Step) -> None:
        """Adds the batch's block of every weight."""
        for name, layer in step.run.layers.items():
            n = layer.weight.numel()
            _check_size(step.run, name, n, self.limit)
            flat = step.gradients[name].reshape(-1)
            rows = [
                derivative([flat[i]], [layer.weight], [torch.ones_like(flat[i])])[0].reshape(-1)
                for i in range(n)
            ]
            block = torch.stack(rows).to(layer.dtype) if rows else flat.new_zeros(0, 0)
            self.add(name, "sum", block * step.batch.samples)
            self.add(name, "samples", step.batch.samples)

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum / samples, symmetric."""
        block = mean(sums)
        return (block + block.T) / 2


def _check_size(run: Run, name: str, entries: int, limit: int) -> None:
    if entries > limit:
        way_out = "use 'lobs' or 'sparsegpt', raise OBS(limit=...), or add the layer to ignore"
        got = f"{entries:,} entries: a Hessian of {entries**2:,} numbers"
        raise bad(run.operation, f"weight {name!r}", f"at most {limit:,} entries", got, way_out)


def _response(step: Step) -> Tensor:
    """The output that the loss is made from."""
    output = getattr(step.output, "logits", step.output)
    if not isinstance(output, Tensor):
        got, way_out = type(output).__name__, "wrap the model so that it returns one tensor"
        expected = "a tensor or an object with .logits"
        raise bad(step.run.operation, "the model's output", expected, got, way_out)
    return output
