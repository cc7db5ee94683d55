"""The Hessian's largest eigenvalues on the weights that a mask keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseprune.criteria.scoring import layers_of
from sparseprune.criteria.statistics import Data, Loss, Run
from sparseprune.criteria.statistics.batches import call, loss_of
from sparseprune.criteria.statistics.curvature import derivative
from sparseprune.criteria.statistics.quiet import twice_differentiable, undisturbed, unwrapped
from sparseprune.errors import bad, check_count, suggest


def top_eigenvalues(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    data: Data,
    loss: Loss | None = None,
    count: int = 10,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Tensor:
    """The `count` largest eigenvalues of P H P on its own space, largest first: float64 [count].

    H is the Hessian of the mean loss by the masked weights, P keeps the entries where the mask is
    True. Lanczos with products H v (Pearlmutter, 1994), each one pass over the data; how sharp the
    minimum is that a ticket finds.

    masks: parameter name -> bool tensor; other parameters are constants.
    data, loss: as for `prune`; batches are read again for every product. The model is measured in
        eval mode and left as it was.
    tolerance: relative accuracy. seed: of the first vector.

    Needs scipy (ImportError says so). Raises ValueError for masks that do not fit the model or
    keep no more than `count` weights.
    """
    try:
        from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("top_eigenvalues needs scipy; pip install scipy") from error
    operation = "top_eigenvalues"
    check_count(operation, "count", count)
    plain = unwrapped(model)
    weights = _weights(operation, plain, masks)
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    if kept <= count:
        got, way_out = f"masks that keep {kept} weights", "pass a smaller count"
        raise bad(operation, "count", "smaller than the kept weights", got, way_out)
    if isinstance(data, Iterator):
        way_out = "pass a list, a DataLoader or a callable that makes the iterator"
        raise bad(operation, "data", "readable many times", "an iterator", way_out)
    run = Run(operation, plain, layers_of(plain, weights), data, loss)
    places = [mask.to(weights[name].device) for name, mask in masks.items()]

    def product(v: Any) -> Any:
        return _flat(_product(run, _unflat(v, places, list(weights.values()))), places)

    first = np.random.default_rng(seed).standard_normal(kept)
    with undisturbed(plain, weights.values()), torch.enable_grad(), twice_differentiable():
        hessian = LinearOperator((kept, kept), matvec=product, dtype=np.float64)
        values = eigsh(
            hessian, count, which="LA", v0=first, tol=tolerance, return_eigenvectors=False
        )
    return torch.from_numpy(np.sort(values)[::-1].copy())


def _weights(
    operation: str, model: nn.Module, masks: Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    """The masked parameters by name."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in known:
            expected = "of parameters that the model has"
            raise bad(operation, "masks", expected, repr(name), suggest(name, known))
        if known[name].shape != mask.shape:
            expected = f"of the parameter's shape {tuple(known[name].shape)}"
            way_out = "use the model that the masks were made for"
            raise bad(operation, f"mask {name!r}", expected, tuple(mask.shape), way_out)
    return {name: known[name] for name in masks}


def _product(run: Run, vector: list[Tensor]) -> list[Tensor]:
    """H v, H of the mean loss over all samples; float64."""
    weights = list(run.weights.values())
    total = [torch.zeros_like(v, dtype=torch.float64) for v in vector]
    samples = 0
    for batch in run.batches():
        value = loss_of(run.operation, call(run.model, batch.inputs), batch, run.loss)
        slopes = torch.autograd.grad(
            value, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        for sum_, part in zip(total, derivative(slopes, weights, vector), strict=True):
            sum_ += part.double() * batch.samples
        samples += batch.samples
    return [sum_ / samples for sum_ in total]


def _unflat(v: Any, places: list[Tensor], weights: list[nn.Parameter]) -> list[Tensor]:
    """A vector over the kept weights -> a tensor for each weight, zero where the mask is False."""
    parts = torch.from_numpy(v.reshape(-1)).split([int(place.count_nonzero()) for place in places])
    found = []
    for part, place, weight in zip(parts, places, weights, strict=True):
        whole = torch.zeros_like(weight)
        whole[place] = part.to(whole)
        found.append(whole.detach())
    return found


def _flat(tensors: list[Tensor], places: list[Tensor]) -> Any:
    return torch.cat([t[place] for t, place in zip(tensors, places, strict=True)]).cpu().numpy()
