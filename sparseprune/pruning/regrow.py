"""Moving weights at constant sparsity: the lowest go, others come back (RigL, SET)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.masks import Masks
from sparseprune.patterns.ranking import lowest
from sparseprune.schedules import Regrowth


def regrow(
    masks: Masks, weights: Mapping[str, nn.Parameter], rule: Regrowth, step: int
) -> Masks | None:
    """Masks with as many weights kept in each layer, some of them moved (see `Regrowth`).

    weights: name -> parameter, of each mask; with `grow="gradient"`, `.grad` as it was used by
        the last optimizer step. A frozen weight, or one that got no gradient, stays as it is.
    Returns None where a gradient is not finite, as in a step that AMP skipped: nothing moves then.

    Raises ValueError if no weight has a gradient to grow by.
    """
    by_gradient = rule.grow == "gradient"
    free = {name: weights[name] for name in masks if weights[name].requires_grad}
    if by_gradient:
        if free and all(weight.grad is None for weight in free.values()):
            way_out = "call step() after optimizer.step() and before optimizer.zero_grad()"
            raise bad("Pruner", "gradients", "there to grow weights by", "none", way_out)
        free = {name: weight for name, weight in free.items() if weight.grad is not None}
        if not all(weight.grad.isfinite().all() for weight in free.values()):  # type: ignore[union-attr]
            return None
    moved = dict(masks)
    for place, name in enumerate(masks):
        if name in free:
            weight = free[name]
            worth = weight.grad.abs() if by_gradient else _random(weight, rule.seed, step, place)  # type: ignore[union-attr]
            moved[name] = _move(masks[name], weight.detach(), worth, rule.share(step))
    return Masks(moved)


def _move(mask: Tensor, weight: Tensor, worth: Tensor, share: float) -> Tensor:
    """Drops `share` of the kept weights, the smallest, and grows as many where `worth` is highest.

    The dropped ones may be chosen again, as in the RigL paper's candidates outside what stays.
    """
    moving = round(share * int(mask.count_nonzero()))
    stays = mask.clone()
    stays[mask] = ~lowest([weight[mask].abs()], moving)[0]
    candidates = worth[~stays]
    grown = ~lowest([candidates], candidates.numel() - moving)[0]
    mask = stays.clone()
    mask[~stays] = grown
    return mask


def _random(weight: Tensor, seed: int, step: int, place: int) -> Tensor:
    """Uniform numbers that depend on nothing else: equal on every process and after a resume."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + place  # a stream of its own for each
    generator = torch.Generator().manual_seed(mixed % 2**63)
    return torch.rand(weight.shape, generator=generator).to(weight.device)
