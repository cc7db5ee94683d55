"""What a criterion is, and how it says what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

from sparseprune.criteria.statistics.base import Statistic
from sparseprune.patterns import Pattern

Stats: TypeAlias = Mapping[str, Tensor]
"""Measurements of one weight: statistic name -> tensor, e.g. "gradient" -> [*weight.shape]."""

Criterion: TypeAlias = Callable[..., Tensor]
"""`(weight) -> score`, or `(weight, stats) -> score` if it has `needs`.

It may carry these attributes:
    needs: factories of the statistics it reads from `stats`; see `measured`.
    granularity: "weight" (the default; the score has the weight's shape), "unit" (one score per
        output unit: the weight's first dimension) or "channel" (one per input channel: the second).
    update(weight, mask, stats) -> weight: new values for the survivors; see `Updates`.
    select(weight, sparsity, pattern, stats) -> mask: its own in scope "local"; see `Selects`.
"""

Granularity: TypeAlias = Literal["weight", "unit", "channel"]
Some = TypeVar("Some", bound=Callable[..., Any])


@runtime_checkable
class Updates(Protocol):
    """A criterion that mends the survivors for what was removed."""

    def update(self, weight: Tensor, mask: Tensor, stats: Stats) -> Tensor:
        """The weight after removal, of the same shape; what it gives where mask is False is lost.

        Called once per weight when all masks are known, before any weight has changed.
        """


@runtime_checkable
class Selects(Protocol):
    """A criterion whose paper prescribes more than ranking the scores of a whole weight."""

    def select(
        self, weight: Tensor, sparsity: float, pattern: Pattern, stats: Stats
    ) -> Tensor | None:
        """The weight's mask in scope "local", or None to let the pattern rank the scores."""


def measured(
    *needs: Callable[[], Statistic], granularity: Granularity = "weight"
) -> Callable[[Some], Some]:
    """Decorates a criterion with what it needs and what it scores."""

    def mark(criterion: Some) -> Some:
        criterion.needs = needs  # type: ignore[attr-defined]
        criterion.granularity = granularity  # type: ignore[attr-defined]
        return criterion

    return mark


def needs_of(criterion: Criterion) -> tuple[Callable[[], Statistic], ...]:
    """The factories of the statistics that a criterion reads; none for a plain callable."""
    return tuple(getattr(criterion, "needs", ()))


def granularity_of(criterion: Criterion) -> Granularity:
    """What a criterion scores; weights for a plain callable."""
    granularity: Granularity = getattr(criterion, "granularity", "weight")
    return granularity
