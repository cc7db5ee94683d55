"""What a model costs under masks, in the unit of a budget: parameters, MACs or milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseprune import clocks
from sparseprune.autotune import caller, compare_ms, device_of
from sparseprune.convert import convert
from sparseprune.copying import copy_settled
from sparseprune.masks import Masks
from sparseprune.profile import profile
from sparseprune.selection import aliases

Cost: TypeAlias = Callable[[Masks], tuple[float, float]]
"""Masks -> (cost under them, cost of the dense model)."""


def parameters(model: nn.Module, inputs: Any) -> Cost:
    """Nonzero parameters of the whole model, as `profile` counts them; tied ones once."""
    own = {name: p.detach() for name, p in model.named_parameters()}
    nonzeros = {name: int(p.count_nonzero()) for name, p in own.items()}
    dense = sum(p.numel() for p in own.values())

    def cost(masks: Masks) -> tuple[float, float]:
        left = {name: _nonzeros(own[name], mask) for name, mask in masks.items()}
        return sum({**nonzeros, **left}.values()), dense

    return cost


def macs(model: nn.Module, inputs: Any) -> Cost:
    """Multiplications with nonzero weights in one forward pass, as `profile` counts them."""
    counted = profile(model, inputs, latency=False)
    same = aliases(model)
    own = {name: p.detach() for name, p in model.named_parameters()}
    positions: dict[str, int] = {}  # weight name -> how often each of its weights multiplies
    fixed: dict[str, int] = {}  # the row's name -> its MACs that no mask changes
    where: dict[str, str] = {}
    for place, row in enumerate(counted.rows):
        path = f"{row.name}.weight".removeprefix("(model).")
        name = same.get(path, [path])[0]
        if name in own and row.kind in ("Linear", "Conv1d", "Conv2d", "Conv3d"):
            positions[name] = positions.get(name, 0) + row.macs // max(1, own[name].numel())
            where[str(place)] = name
        fixed[str(place)] = row.nonzero_macs

    def cost(masks: Masks) -> tuple[float, float]:
        rest = sum(count for place, count in fixed.items() if where.get(place) not in masks)
        left = sum(positions.get(n, 0) * _nonzeros(own[n], mask) for n, mask in masks.items())
        return rest + left, counted.macs

    return cost


def latency(model: nn.Module, inputs: Any) -> Cost:
    """Median milliseconds of the converted model, and of the dense one timed in turn with it.

    Both run in eval mode on the same inputs; the dense one eagerly.
    """
    dense = copy_settled(model).eval()

    def cost(masks: Masks) -> tuple[float, float]:
        pruned = copy_settled(model)
        masks.apply_(pruned)
        fast = convert(pruned, inputs)
        with torch.inference_mode():
            calls = {"dense": caller(dense, inputs), "fast": caller(fast, inputs)}
            ms = compare_ms(calls, clock=clocks.of_models(device_of(dense)))
        return ms["fast"], ms["dense"]

    return cost


COSTS: Mapping[str, Callable[[nn.Module, Any], Cost]] = {
    "parameters": parameters,
    "macs": macs,
    "latency": latency,
}

UNITS = {"parameters": "parameters", "macs": "MACs", "latency": "ms"}


def _nonzeros(weight: Tensor, mask: Tensor) -> int:
    return int((mask.to(weight.device) & (weight != 0)).count_nonzero())
