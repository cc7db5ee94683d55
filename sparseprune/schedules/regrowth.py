"""Dynamic sparse training: at constant sparsity, weights move to better places."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseprune.errors import bad, check_count, suggest

GROWTH = ("gradient", "random")


@dataclass(frozen=True)
class Regrowth:
    """Every `frequency` steps a share of each layer's kept weights goes, and as many come back.

    The weights of lowest magnitude go. Of the others and those just dropped, as many are grown
    where the loss gradient is largest ("gradient") or anywhere ("random"). A weight grown anew
    starts at zero, with zero momentum; one dropped and regrown at once keeps its value. The number
    of weights in each layer stays.

    end: the last step at which weights may move; RigL proposes 3/4 of the training.
    begin: the first; a gradient must have been computed by then, so at least 1.
    frequency: steps in between.
    fraction: share of the kept weights that moves, in (0, 1).
    grow: "gradient" or "random".
    decay: "cosine": the share falls as fraction / 2 (1 + cos(pi step / end)); or "constant".
    seed: of the random growth; the places depend on it, the step and the layer alone.

    `rigl` and `set` give the papers' settings. Raises ValueError or TypeError naming the argument
    that does not fit.
    """

    end: int
    begin: int = 1
    frequency: int = 100
    fraction: float = 0.3
    grow: str = "gradient"
    decay: str = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("Regrowth", "begin", self.begin)
        check_count("Regrowth", "end", self.end, least=self.begin)
        check_count("Regrowth", "frequency", self.frequency)
        if not 0 < self.fraction < 1:
            way_out = "pass the share of kept weights to move, e.g. 0.3"
            raise bad("Regrowth", "fraction", "between 0 and 1", self.fraction, way_out)
        for argument, known in (("grow", GROWTH), ("decay", ("cosine", "constant"))):
            if (got := getattr(self, argument)) not in known:
                expected = " or ".join(map(repr, known))
                raise bad("Regrowth", argument, expected, repr(got), suggest(got, known))

    def due(self, step: int) -> bool:
        """Whether weights move at this step: a multiple of `frequency` in [begin, end]."""
        return self.begin <= step <= self.end and step % self.frequency == 0

    def share(self, step: int) -> float:
        """The share of the kept weights that moves at this step."""
        if self.decay == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * min(step / self.end, 1.0)))


def rigl(end: int, frequency: int = 100, fraction: float = 0.3) -> Regrowth:
    """RigL: grow where the gradient is largest, alpha / 2 (1 + cos(pi t / T_end)) of the weights.

    (Evci et al., 2020, arXiv:1911.11134; frequency is Delta T, fraction is alpha, end is T_end.)
    """
    return Regrowth(end, begin=1, frequency=frequency, fraction=fraction)


def set_evolution(end: int, frequency: int = 100, fraction: float = 0.3, seed: int = 0) -> Regrowth:
    """SET: grow anywhere, a constant share (Mocanu et al., 2018, arXiv:1707.04780).

    fraction is the paper's zeta; its frequency is one epoch. The paper draws a value for a grown
    weight; here it starts at zero, as in RigL, and the loss does not jump.
    """
    return Regrowth(end, 1, frequency, fraction, grow="random", decay="constant", seed=seed)
