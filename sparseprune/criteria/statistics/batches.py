"""Data in: what a batch is, how the model is called with it, and what its loss is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparseprune.errors import bad, bad_type

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""(model output, target or whole batch) -> scalar."""

Data: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]
"""Batches, or a function that gives them anew at every call."""


@dataclass(frozen=True)
class Batch:
    """One batch as the model and the loss take it.

    inputs: a tensor, a tuple of positional arguments or a dict of keywords.
    target: what the loss is given beside the output: the second of (inputs, target), else the
        whole batch.
    """

    inputs: Any
    target: Any

    @property
    def samples(self) -> int:
        """The length of the first tensor's first dimension; 1 for a scalar."""
        first = next(leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor))
        return first.shape[0] if first.dim() else 1

    def split(self) -> Iterator[Batch]:
        """The samples one by one, each still a batch."""
        n = self.samples

        def part(leaf: Any, i: int) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == n
            return leaf[i : i + 1] if batched else leaf

        for i in range(n):
            inputs, target = tree_map(lambda leaf, i=i: part(leaf, i), (self.inputs, self.target))
            yield Batch(inputs, target)


def stream(operation: str, data: Data | None, device: torch.device) -> Iterator[Batch]:
    """All batches, on `device`; an error if there are none, or `data` is nothing that gives any."""
    count = 0
    for batch in _iterable(operation, data):
        count += 1
        yield read(operation, batch, device)
    if not count:
        way_out = "pass a list, a DataLoader or a callable: an iterator can be read only once"
        raise bad(operation, "data", "at least one batch", "none", way_out)


def length(data: Data | None) -> int | None:
    """How many batches there are, if the data say so."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # also of a DataLoader over an IterableDataset
        return None


def _iterable(operation: str, data: Data | None) -> Iterable[Any]:
    expected = "an iterable of batches, or a callable that gives one"
    way_out = "pass data=, e.g. a list of (inputs, target) or a DataLoader"
    if data is None:
        raise bad(operation, "data", expected, "None", way_out)
    given = data() if callable(data) and not isinstance(data, Iterable) else data
    if not isinstance(given, Iterable) or isinstance(given, (Tensor, Mapping, str)):
        way_out = "wrap a single batch in a list: data=[batch]"
        raise bad_type(operation, "data", expected, type(given).__name__, way_out)
    return given


def read(operation: str, batch: Any, device: torch.device) -> Batch:
    """`batch` as a Batch on `device`; TypeError for what is none, ValueError if it is empty."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, target = batch
    elif isinstance(batch, (tuple, list)) and len(batch) == 1:
        inputs, target = batch[0], batch[0]
    else:
        inputs, target = batch, batch
    if isinstance(inputs, Mapping):  # e.g. transformers.BatchEncoding, which is no pytree
        inputs, target = dict(inputs), dict(inputs) if target is batch else target
    expected = "tensors, (inputs, target) or dicts of keywords"
    way_out = "inputs may be a tuple of positional arguments or a dict of keywords"
    if isinstance(batch, (tuple, list)) and len(batch) not in (1, 2):
        raise bad_type(operation, "data", f"batches of {expected}", f"{len(batch)} items", way_out)
    known = isinstance(inputs, (Tensor, tuple, list, dict))
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)] if known else []
    if not tensors:
        raise bad_type(operation, "data", f"batches of {expected}", type(batch).__name__, way_out)
    if not all(tensor.numel() for tensor in tensors):
        raise bad(operation, "data", "batches with samples", "an empty batch", "drop it")

    def place(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return Batch(tree_map(place, inputs), tree_map(place, target))


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output; like `autotune.caller`, a tuple is positional, a dict keywords."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def loss_of(operation: str, output: Any, batch: Batch, loss: Loss | None) -> Tensor:
    """The batch's loss, a finite scalar; without `loss` the model's own, `output.loss`.

    Raises ValueError if there is none, or it is no scalar, not finite, or not differentiable.
    """
    value: Any
    if loss is not None:
        value = loss(output, batch.target)
    else:
        value = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if value is None:
            way_out = "pass loss=, e.g. torch.nn.functional.cross_entropy"
            got = "none, and a model output without .loss"
            raise bad(operation, "loss", "a callable (output, target) -> scalar", got, way_out)
    way_out = "check the loss, the model and this batch"
    if not isinstance(value, Tensor) or value.numel() != 1:
        form = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise bad(operation, "the loss", "a scalar tensor", form, "reduce it, e.g. with .mean()")
    if not value.isfinite():
        raise bad(operation, "the loss", "finite", value.item(), way_out)
    if torch.is_grad_enabled() and not value.requires_grad:
        raise bad(operation, "the loss", "differentiable", "one without a gradient", way_out)
    return value.reshape(())
