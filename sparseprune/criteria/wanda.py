"""Wanda: magnitude times the norm of what the weight multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics.inputs import InputNorm
from sparseprune.patterns import Pattern, Unstructured


@dataclass(frozen=True)
class Wanda:
    """|w_ij| * ||X_j||_2, X_j input j over all samples and positions. Higher is kept.

    In scope "local" with pattern "unstructured" weights are compared within each output row, as in
    the paper: round(sparsity * columns) go from every row, ties by position.
    (Sun et al., 2023, arXiv:2306.11695.) For a convolution j runs over the unfolded
    input, in * kernel. Needs data, no loss; the score has the weight's shape, at least float32.
    """

    needs = (InputNorm,)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        norm = stats["input_norm"]  # [groups, k]
        grouped = weight.to(norm.dtype).abs().reshape(norm.shape[0], -1, norm.shape[1])
        return (grouped * norm.unsqueeze(1)).reshape(weight.shape)

    def select(
        self, weight: Tensor, sparsity: float, pattern: Pattern, stats: Stats
    ) -> Tensor | None:
        """The same number from each row; None for a pattern that compares otherwise."""
        if not isinstance(pattern, Unstructured):
            return None
        score = self(weight, stats).masked_fill(weight == 0, -1).flatten(1)
        lowest = score.argsort(dim=1, stable=True)[:, : round(sparsity * score.shape[1])]
        return torch.ones_like(score, dtype=torch.bool).scatter_(1, lowest, False).view_as(weight)
