"""Unstructured: any weight may be zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sparseprune.patterns.ranking import floor, lowest, lowest_together


@dataclass(frozen=True)
class Unstructured:
    """Each weight stands alone: the lowest scores go, ties by position."""

    name: str = "unstructured"

    def mask(self, score: Tensor, sparsity: float, groups: int = 1) -> Tensor:
        """Removes exactly round(sparsity * n) of the n entries of `score` (any shape)."""
        return ~lowest([score], round(sparsity * score.numel()))[0]

    def masks(
        self, scores: Mapping[str, Tensor], sparsity: float, groups: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """Removes exactly round(sparsity * n) of all n entries, by one threshold.

        No weight is emptied: each keeps at least `FLOOR` of the requested density, and one entry.
        The others then give more; only if none can (fewer survivors than weights) are fewer
        removed. A weight that the floor stopped is named in a warning.
        """
        least = {name: floor(score.numel(), sparsity) for name, score in scores.items()}
        count = round(sparsity * sum(score.numel() for score in scores.values()))
        removed = lowest_together(scores, count, least)
        return {name: ~gone for name, gone in removed.items()}
