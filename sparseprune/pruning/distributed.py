"""The same masks on every process that trains one model."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from sparseprune.masks import Masks


@torch.no_grad()
def agreed(masks: Masks, model: nn.Module) -> Masks:
    """The masks of the first process; the weights under them are set to its weights as well.

    Collective: every process of torch.distributed's default group calls it, with masks of the same
    names. The weights are sent because a process whose own mask was another one has already
    zeroed weights that the first one keeps: criteria with random numbers or data of their own.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return masks
    common = {}
    for name, mask in masks.items():
        bits = mask.contiguous().view(torch.uint8)
        weight = model.get_parameter(name)
        value = weight.detach().contiguous()
        for tensor in (bits, value):
            dist.broadcast(tensor, src=0)
        weight.copy_(value)
        common[name] = bits.view(torch.bool)
    return Masks(common)
