"""Small models to prune, and what pruning left of them."""

from __future__ import annotations

import torch
from torch import nn

from sparseprune.masks import Masks

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 4)
    )


def unequal() -> nn.Sequential:
    model = small()
    model[3].weight.data.mul_(1e-6)
    return model


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """Bit-identical state: a NaN equals itself, -0.0 differs from 0.0."""
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        torch.equal(left[n].reshape(-1).view(torch.uint8), right[n].reshape(-1).view(torch.uint8))
        for n in left
    )


def kept(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
