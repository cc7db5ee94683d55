"""L-OBS: optimal brain surgeon layer by layer, on what the layer computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics.inputs import InputGram
from sparseprune.criteria.surgery import compensated, damped, inverse


@dataclass(frozen=True)
class LOBS:
    """w_ij^2 / (2 [H^-1]_jj), H = X^T X / n + damping * mean(diag) I. Higher is kept.

    Half the mean squared change of the layer's output when weight j of unit i goes and the unit's
    other weights answer. Survivors are updated for all removed weights of their unit together:
    the least-squares fit of the layer's output on the inputs that are left (see `compensated`).
    (Dong, Chen & Pan, 2017, arXiv:1705.07565.)

    X: what the weight multiplies at every sample and position, [n, in * kernel]; one H per group
    of a grouped convolution. Needs data, no loss; the score has the weight's shape, float64.
    """

    damping: float = 1e-2
    needs = (InputGram,)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        hessian = damped(stats["input_gram"], self.damping)
        diagonal = inverse(hessian).diagonal(dim1=-2, dim2=-1).unsqueeze(1)  # [groups, 1, k]
        grouped = weight.double().reshape(hessian.shape[0], -1, hessian.shape[1])
        return (grouped.square() / (2 * diagonal)).reshape(weight.shape)

    def update(self, weight: Tensor, mask: Tensor, stats: Stats) -> Tensor:
        """w_K + H_KK^-1 H_KS w_S in every row of the weight."""
        hessian = damped(stats["input_gram"], self.damping)
        shape = (hessian.shape[0], -1, hessian.shape[1])
        groups = zip(weight.reshape(shape), mask.reshape(shape), hessian, strict=True)
        return torch.stack([compensated(w, m, h) for w, m, h in groups]).reshape(weight.shape)
