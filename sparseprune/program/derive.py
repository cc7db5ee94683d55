"""Tensors that a program makes for itself from a layer which stays as it is in the tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.formats import Csr, CsrWeight, PackedWeight
from sparseprune.formats.csr import LAYOUTS

Made: TypeAlias = PackedWeight | Tensor
READ = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a layer that something may be derived from."""


@dataclass(frozen=True)
class Derived:
    """One thing that a program owns.

    Args:
        recipe: of ``RECIPES``.
        path: of the layer in the root model; "" for none.
        name: under which the program holds it.
        numbers: more that the recipe needs.
    """

    recipe: str
    path: str
    name: str
    numbers: tuple[int, ...] = ()


def layout_for(weight: Tensor, groups: int) -> Csr | None:
    """How to pack a dense convolution: four rows together, unless its groups forbid it."""
    layouts = (Csr("groups"), Csr("rows"))
    return next((f for f in layouts if f.refuses(weight, groups) is None), None)


def packed_conv(conv: Any, *packing: int) -> PackedWeight:
    """The weight of a dense convolution, without its zeros; packed as :func:`packing_of` says."""
    weight = conv.weight.detach().flatten(1)
    layout = _format(packing) if packing else layout_for(weight, conv.groups)
    assert layout is not None, "asked for before lowering"
    return layout.pack(weight, conv.groups)


def packing_of(weight: CsrWeight) -> tuple[int, int]:
    """Layout and block as the recipe "conv" takes them."""
    return list(LAYOUTS).index(weight.layout), weight.block


def _format(packing: tuple[int, ...]) -> Csr:
    layout, block = packing
    return Csr(list(LAYOUTS)[layout], block or None)


def norm_scale(norm: Any) -> Tensor:
    """What a batch normalisation in eval mode multiplies every channel by."""
    return _scale(norm).float()


def norm_shift(norm: Any) -> Tensor:
    """What a batch normalisation in eval mode adds to every channel."""
    shift: Tensor = -norm.running_mean.double() * _scale(norm)
    return (shift if norm.bias is None else shift + norm.bias.double()).float()


def _scale(norm: Any) -> Tensor:
    scale: Tensor = 1 / (norm.running_var.double() + norm.eps).sqrt()
    return scale if norm.weight is None else scale * norm.weight.double()


def placed_channels(root: Any, channels: int, before: int, after: int) -> PackedWeight:
    """A 1x1 convolution that puts these channels between channels of zeros."""
    weight = torch.zeros(before + channels + after, channels)
    weight[before : before + channels] = torch.eye(channels)
    return Csr("groups").pack(weight)


def slopes(prelu: Any, channels: int) -> Tensor:
    """The one slope of a PReLU, for every channel."""
    slope: Tensor = prelu.weight.detach().expand(channels)
    return slope.float().contiguous()


RECIPES: dict[str, Callable[..., Made]] = {
    "conv": packed_conv,
    "scale": norm_scale,
    "shift": norm_shift,
    "slope": slopes,
    "place": placed_channels,
}
"""Name -> what makes the thing from its layer."""
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SOURCES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": CONVS, "scale": NORMS, "shift": NORMS, "slope": (nn.PReLU,),
}  # fmt: skip
"""Name -> the layers that it takes; the others take numbers alone."""
MAX_PLACED = 2**24
"""Weights of "place", written out: numbers from a file must not fill the memory."""


def check_derived(derived: Derived, layer: nn.Module) -> None:
    """That the recipe can be followed, whoever wrote it.

    Raises:
        ValueError: an unknown recipe, another kind of layer, or numbers that do not fit.
    """
    if derived.recipe not in RECIPES:
        raise bad("Program", f"recipe of {derived.name!r}", f"one of {', '.join(RECIPES)}",
                  derived.recipe, "save the model again")  # fmt: skip
    kinds = SOURCES.get(derived.recipe, ())
    expected = " or ".join(kind.__name__ for kind in kinds) or "three numbers, not too large"
    if kinds:
        fits = type(layer) in kinds and _can(derived, layer)
    else:
        fits = not derived.path and can_place(*derived.numbers)
    if not fits:
        raise bad("Program", f"source of {derived.recipe} {derived.name!r}", expected,
                  f"{type(layer).__name__} {derived.numbers}", "save the model again")  # fmt: skip


def _can(derived: Derived, layer: Any) -> bool:
    if derived.recipe == "slope":
        return layer.weight.numel() == 1 and _few(derived.numbers)
    if derived.recipe != "conv":
        return not derived.numbers and layer.running_mean is not None
    weight, numbers = layer.weight.detach().flatten(1), derived.numbers
    if not numbers:
        return layout_for(weight, layer.groups) is not None
    if [type(n) for n in numbers] != [int, int] or numbers[0] not in range(len(LAYOUTS)):
        return False
    return _format(numbers).refuses(weight, layer.groups) is None


def _few(numbers: tuple[int, ...]) -> bool:
    return len(numbers) == 1 and type(numbers[0]) is int and 0 < numbers[0] <= MAX_PLACED


def can_place(*numbers: int) -> bool:
    """Whether the recipe "place" takes these numbers."""
    if len(numbers) != 3 or any(type(n) is not int or n < 0 for n in numbers):
        return False
    return sum(numbers) * numbers[0] <= MAX_PLACED


def make(derived: Derived, layer: nn.Module | None) -> Made:
    """The derived thing, from the layer as it is now."""
    with torch.no_grad():
        return RECIPES[derived.recipe](layer, *derived.numbers)


def tensors_of(derived: Derived, layer: nn.Module) -> list[Tensor]:
    """What the thing depends on."""
    if not derived.path:
        return []
    held = {**layer._parameters, **layer._buffers}
    return [tensor for name in READ if (tensor := held.get(name)) is not None]
