"""Patterns: where zeros may be. A pattern turns scores into a legal mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor

from sparseprune.errors import bad, bad_type, suggest
from sparseprune.patterns.groups import Block, Groups, Slices
from sparseprune.patterns.nm import NM, VNM
from sparseprune.patterns.ranking import FLOOR
from sparseprune.patterns.unstructured import Unstructured

__all__ = [
    "FLOOR",
    "NM",
    "PATTERNS",
    "VNM",
    "Block",
    "Groups",
    "Pattern",
    "Slices",
    "Unstructured",
    "resolve",
]


@runtime_checkable
class Pattern(Protocol):
    """Legal masks of one kind. A mask is a bool tensor of the score's shape, True = kept.

    Scores are real and free of NaN, higher is kept, shaped like the weight: [out, in] or
    [out, in / groups, *kernel]; `sparsity` is the share in [0, 1) to remove; `groups` is that of a
    grouped convolution, 1 for other layers. The same scores must give the same mask on every
    device, ties included. A sparsity that the pattern cannot have is a ValueError.
    """

    @property
    def name(self) -> str:
        """How users and reports call the pattern."""

    def mask(self, score: Tensor, sparsity: float, groups: int = 1) -> Tensor:
        """The mask of one weight by itself (scope "local")."""

    def masks(
        self, scores: Mapping[str, Tensor], sparsity: float, groups: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """The masks of many weights ranked together (scope "global"); groups of 1 may be absent."""


PATTERNS: dict[str, Callable[[], Pattern]] = {
    "unstructured": Unstructured,
    "filter": lambda: Slices("filter", dims=(2, 3)),  # w[o]: all weights of one output
    "channel": lambda: Slices("channel", dims=(1, 3)),  # w[:, i]: all weights that read one input
    "kernel": lambda: Slices("kernel", dims=(3,)),  # w[o, i]: one k x k slice
    "row": lambda: Slices("row", dims=(1,)),  # w[:, i, y, x]: one row of the unfolded input
}
"""Name -> pattern. "row" is the shape of SSL (Wen et al., 2016, arXiv:1608.03665) and group brain
damage (Lebedev & Lempitsky, 2016, arXiv:1506.02515): what all filters read at one place."""

FORMS: dict[str, tuple[str, Callable[..., Pattern]]] = {
    "2:4": (r"(\d+):(\d+)", NM),
    "64:2:8": (r"(\d+):(\d+):(\d+)", VNM),
    "block(4,1)": (r"block\((\d+), *(\d+)\)", Block),
    "block(32,32,taps)": (r"block\((\d+), *(\d+), *taps\)", partial(Block, taps=True)),
}
"""Example -> (its form, what makes a pattern of its numbers)."""


def resolve(pattern: str | Pattern, operation: str = "prune") -> Pattern:
    """The pattern of that name, or the instance itself; an error with near matches otherwise.

    A name is one of `PATTERNS`, "n:m" (n of every m kept), "v:n:m", "block(r,c)" or
    "block(r,c,taps)".
    """
    expected = "a known name or a Pattern"
    if isinstance(pattern, str):
        for form, make in FORMS.values():
            if found := re.fullmatch(form, pattern):
                return make(*map(int, found.groups()))
        if pattern not in PATTERNS:
            way_out = suggest(pattern, (*PATTERNS, *FORMS))
            raise bad(operation, "pattern", expected, repr(pattern), way_out)
        return PATTERNS[pattern]()
    if isinstance(pattern, type) or not isinstance(pattern, Pattern):
        way_out = suggest("", (*PATTERNS, *FORMS))
        raise bad_type(operation, "pattern", expected, repr(pattern), way_out)
    return pattern
