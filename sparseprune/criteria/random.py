"""Random: the control that every criterion must beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats


@dataclass(frozen=True)
class Random:
    """u ~ U(0, 1), independent for every weight.

    seed: fixes the scores for weights of given values, on every device and rank; torch's global
        random state is neither read nor changed.
    The score has the weight's shape, float32.
    """

    seed: int = 0

    def __call__(self, weight: Tensor, stats: Stats | None = None) -> Tensor:
        # Layers of one shape must not share their draw: the values tell them apart.
        content = weight.detach().float().cpu().contiguous().numpy().tobytes()
        # torch reads the low 32 bits of a seed
        seed = zlib.crc32(content, zlib.crc32(str(self.seed).encode()))
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
