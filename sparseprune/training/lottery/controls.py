"""Controls: what a ticket must beat. Masks of the same size in every layer, by another rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseprune.errors import bad, suggest
from sparseprune.masks import Masks


def shuffled(masks: Mapping[str, Tensor], generator: torch.Generator) -> Masks:
    """Every layer's mask in a random order: its number of weights stays, their places do not.

    The same as a random mask at the layer's ratio: OpenLTH's branch "randomly_prune", layerwise,
    and the "random shuffling" of Frankle et al. (2021, arXiv:2009.08576).
    generator: on the CPU; the same one gives the same masks on every device.
    """

    def turned(mask: Tensor) -> Tensor:
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return mask.reshape(-1)[order].reshape(mask.shape)

    return Masks({name: turned(mask) for name, mask in masks.items()})


def inverted(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> Masks:
    """In every layer as many weights as `masks` keep, but those of the lowest score.

    Frankle et al. (2021, arXiv:2009.08576), "inversion". scores: name -> what the masks were
    chosen by, of the mask's shape, e.g. `Ticket.scores`. Ties go by position.
    Raises ValueError for a mask without a score of its shape.
    """
    kept = {}
    for name, mask in masks.items():
        if name not in scores or scores[name].shape != mask.shape:
            got = f"shape {tuple(scores[name].shape)}" if name in scores else "none"
            expected = f"of shape {tuple(mask.shape)} for {name!r}"
            raise bad("inverted", "scores", expected, got, suggest(name, scores))
        lowest = scores[name].reshape(-1).argsort(stable=True)[: int(mask.count_nonzero())]
        turned = torch.zeros_like(mask).reshape(-1)
        turned[lowest.to(mask.device)] = True
        kept[name] = turned.reshape(mask.shape)
    return Masks(kept)
