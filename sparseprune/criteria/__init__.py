"""Criteria: what a weight is worth. One small function each; a higher score is kept.

A criterion maps a weight to a score of the same shape. It may take a second argument, `stats`:
what was measured about that weight on data. The functions that need none leave it unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from sparseprune.criteria.magnitude import magnitude
from sparseprune.errors import bad, bad_type, suggest

Stats: TypeAlias = Mapping[str, Tensor]
"""Measurements of one weight: statistic name -> tensor, e.g. "input_norm" -> [in_features]."""

Criterion: TypeAlias = Callable[..., Tensor]
"""`(weight) -> score` or `(weight, stats) -> score`."""

CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}

__all__ = ["CRITERIA", "Criterion", "Stats", "magnitude", "resolve"]


def resolve(criterion: str | Criterion, operation: str = "prune") -> Criterion:
    """The criterion of that name, or the callable itself; an error with near matches otherwise."""
    expected = "a known name or a callable (weight) -> score"
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise bad(
                operation, "criterion", expected, repr(criterion), suggest(criterion, CRITERIA)
            )
        return CRITERIA[criterion]
    if not callable(criterion):
        raise bad_type(operation, "criterion", expected, repr(criterion), suggest("", CRITERIA))
    return criterion
