"""Patterns: where zeros may be. A pattern turns scores into a legal mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from sparseprune.errors import bad, bad_type, suggest
from sparseprune.patterns.unstructured import Unstructured

__all__ = ["PATTERNS", "Pattern", "Unstructured", "resolve"]


@runtime_checkable
class Pattern(Protocol):
    """Legal masks of one kind. A mask is a bool tensor of the score's shape, True = kept.

    Scores are real and free of NaN, higher is kept; `sparsity` is the share in [0, 1) to remove.
    The same scores must give the same mask on every device, ties included.
    """

    @property
    def name(self) -> str:
        """How users and reports call the pattern."""

    def mask(self, score: Tensor, sparsity: float) -> Tensor:
        """The mask of one weight by itself (scope "local")."""

    def masks(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """The masks of many weights ranked together (scope "global")."""


PATTERNS: dict[str, Callable[[], Pattern]] = {"unstructured": Unstructured}


def resolve(pattern: str | Pattern, operation: str = "prune") -> Pattern:
    """The pattern of that name, or the instance itself; an error with near matches otherwise."""
    expected = "a known name or a Pattern"
    if isinstance(pattern, str):
        if pattern not in PATTERNS:
            raise bad(operation, "pattern", expected, repr(pattern), suggest(pattern, PATTERNS))
        return PATTERNS[pattern]()
    if isinstance(pattern, type) or not isinstance(pattern, Pattern):
        raise bad_type(operation, "pattern", expected, repr(pattern), suggest("", PATTERNS))
    return pattern
