"""Scores of a model's weights, made once; masks of any sparsity from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sparseprune.masks import Masks
from sparseprune.patterns import Pattern

SCOPES = ("global", "local")


@dataclass(frozen=True)
class Ranked:
    """What a criterion says of every weight, ready to be cut at any sparsity.

    scores: parameter name -> score of the weight's shape, real, no NaN, higher = keep.
    groups: parameter name -> groups of its convolution; 1 may be absent.
    """

    scores: Mapping[str, Tensor]
    groups: Mapping[str, int]
    pattern: Pattern
    scope: str = "global"

    def masks(self, sparsity: float | Mapping[str, float]) -> Masks:
        """The masks at one sparsity for all, or at {parameter name: share}, each by itself."""
        if self.scope == "global" and not isinstance(sparsity, Mapping):
            return Masks(self.pattern.masks(self.scores, float(sparsity), self.groups))
        given = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(self.scores, sparsity)
        masks: dict[str, Tensor] = {}
        for name, share in given.items():
            masks[name] = self.pattern.mask(self.scores[name], share, self.groups.get(name, 1))
        return Masks(masks)
