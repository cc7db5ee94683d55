"""Optimal brain surgeon: remove by the full Hessian, and adjust the survivors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics.curvature import HessianBlock
from sparseprune.criteria.surgery import compensated


@dataclass(frozen=True)
class OBS:
    """w_k^2 / (2 [H^-1]_kk), H the Hessian of the mean loss. Higher is kept.

    The rise of the loss when weight k goes and the others answer by
    dw = -w_k H^-1 e_k / [H^-1]_kk. Survivors are updated for all removed weights together (see
    `compensated`). (Hassibi & Stork, 1993, Second Order Derivatives for Network Pruning.)

    H is exact, one block per weight tensor: terms between layers are left out. It assumes a
    minimum; eigenvalues below damping * the largest are raised to that.
    damping: share in (0, 1]. limit: most entries of one weight; n of them cost n backward passes a
        batch and 8 n^2 bytes.
    Needs data and a loss; the score has the weight's shape, float64.
    """

    damping: float = 1e-6
    limit: int = 4096

    @property
    def needs(self) -> tuple[partial[HessianBlock]]:
        """The Hessian, block by block."""
        return (partial(HessianBlock, self.limit),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        values, vectors = self._eigen(stats)
        diagonal = (vectors.square() / values).sum(1)
        return (weight.double().square().reshape(-1) / (2 * diagonal)).reshape(weight.shape)

    def update(self, weight: Tensor, mask: Tensor, stats: Stats) -> Tensor:
        """w_K + H_KK^-1 H_KS w_S: all entries of the weight answer for the removed ones S."""
        values, vectors = self._eigen(stats)
        hessian = (vectors * values) @ vectors.T
        rows = compensated(weight.reshape(1, -1), mask.reshape(1, -1), hessian)
        return rows.reshape(weight.shape)

    def _eigen(self, stats: Stats) -> tuple[Tensor, Tensor]:
        """Eigenvalues, positive, and eigenvectors of H."""
        values, vectors = torch.linalg.eigh(stats["hessian_block"].double())
        least = values.max().clamp_min(torch.finfo(values.dtype).tiny) * self.damping
        return values.clamp_min(least), vectors
