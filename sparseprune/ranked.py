"""Scores of a model's weights, made once; masks of any sparsity from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparseprune.criteria import Scored
from sparseprune.errors import warn
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern

SCOPES = ("global", "local")


@dataclass(frozen=True)
class Ranked:
    """What a criterion says of every weight, ready to be cut at any sparsity.

    groups: parameter name -> groups of its convolution; 1 may be absent.
    """

    scored: Scored
    groups: Mapping[str, int]
    pattern: Pattern
    scope: str = "global"

    def masks(self, sparsity: float | Mapping[str, float]) -> Masks:
        """The masks at one sparsity for all, or at {parameter name: share}, each by itself."""
        scores = self.scored.scores
        # with, not a decorator: warnings point at the caller, past frames of this package alone
        with torch.no_grad():
            if not isinstance(sparsity, Mapping):
                if self.scope == "global":
                    return Masks(self.pattern.masks(scores, float(sparsity), self.groups))
                sparsity = dict.fromkeys(scores, sparsity)
            return Masks(self.scored.masks(sparsity, self.pattern, self.groups))

    def prune_(self, model: nn.Module, sparsity: float | Mapping[str, float]) -> Masks:
        """The same masks, applied to the model that was scored; survivors get their new values.

        On an error nothing has changed.
        """
        masks = self.masks(sparsity)
        with torch.no_grad():
            updates = self.scored.updates(masks)
            emptied = [name for name, mask in masks.items() if mask.numel() and not mask.any()]
            if emptied:
                warn(f"prune: no weight is left in {', '.join(emptied)}")
            masks.apply_(model)  # the last that can fail; it checks before it writes
            for name, value in updates.items():
                self.scored.weights[name].copy_(value.masked_fill(~masks[name], 0))
        return masks
