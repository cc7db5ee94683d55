"""The tensors of a model: their sizes, nonzeros and bytes, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseprune.formats import PackedWeight


@dataclass(frozen=True)
class Stored:
    """One tensor of the model as a finished network has it, and the bytes that hold it.

    A weight computed from others (parametrizations, torch.nn.utils.prune) counts as itself.
    `first` is the first name of the same tensor: a tied one has another `name`.
    """

    name: str
    first: str
    owner: nn.Module
    shape: torch.Size
    nonzeros: int
    multiplied: int
    dense_bytes: int
    stored_bytes: int
    format: str = "dense"

    @property
    def numel(self) -> int:
        """Entries, zeros included."""
        return self.shape.numel()


def stored_tensors(model: nn.Module) -> list[Stored]:
    """Every parameter and packed weight, tied ones under each of their names."""
    found: list[Stored] = []
    first: dict[int, str] = {}
    inside: set[int] = set()  # modules that only serve to compute a weight
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        if parametrize.is_parametrized(module):
            inside |= {id(m) for m in module.get_submodule("parametrizations").modules()}
        for base, value, sources in _own_tensors(module):
            name = f"{path}.{base}".strip(".")
            same = first.setdefault(id(sources[0]), name)
            found.append(_stored(name, same, module, value, sum(s.nbytes for s in sources)))
        weight = module._modules.get("weight")
        if isinstance(weight, PackedWeight):
            name = f"{path}.weight".strip(".")
            found.append(_packed(name, first.setdefault(id(weight), name), module, weight))
    return found


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """(name, value, tensors that hold it) of everything that is a parameter or computed of some."""
    if parametrize.is_parametrized(module):
        for base, made in module.get_submodule("parametrizations").named_children():
            yield base, getattr(module, base), [*made.parameters(), *made.buffers()]
    done: set[str] = set()
    for name, parameter in module._parameters.items():
        base = name.rpartition("_")[0]
        value = None if base in module._parameters else module.__dict__.get(base)
        if parameter is None or base in done:
            continue
        if not isinstance(value, Tensor):
            yield name, parameter, [parameter]
            continue
        done.add(base)  # weight_g and weight_v make one weight
        own = {**module._parameters, **module._buffers}
        sources = [t for n, t in own.items() if t is not None and n.startswith(f"{base}_")]
        mask = module._buffers.get(f"{base}_mask")
        # the hook recomputes it at every call: what lies there may be of an older step
        yield base, value if mask is None else parameter * mask, sources
    weight = module._buffers.get("weight", module.__dict__.get("weight"))
    layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    if layer and isinstance(weight, Tensor) and "weight" not in done:
        yield "weight", weight, [weight]  # frozen: no parameter, and multiplied all the same


def _stored(name: str, first: str, owner: nn.Module, value: Tensor, held: int) -> Stored:
    value = value.detach()
    # meta tensors have no values to look at
    nonzeros = value.numel() if value.is_meta else int(torch.count_nonzero(value))
    return Stored(name, first, owner, value.shape, nonzeros, value.numel(), value.nbytes, held)


def _packed(name: str, first: str, owner: nn.Module, weight: PackedWeight) -> Stored:
    return Stored(
        name,
        first,
        owner,
        weight.shape,
        nonzeros=int(torch.count_nonzero(weight.unpack())),
        multiplied=weight.nonzeros,
        dense_bytes=weight.shape.numel() * weight.dtype.itemsize,
        stored_bytes=weight.nbytes,
        format=weight.name,
    )
