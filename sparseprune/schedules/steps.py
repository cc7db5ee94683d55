"""When to prune, and how far, in steps of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sparseprune.errors import bad, bad_type, check_count, suggest
from sparseprune.schedules.curves import cosine, cubic, geometric, linear, one_shot

Curve: TypeAlias = Callable[[float, float, float], float]
"""`(progress, final, initial) -> sparsity`."""

CURVES: dict[str, Curve] = {
    "one_shot": one_shot,
    "linear": linear,
    "cosine": cosine,
    "cubic": cubic,
    "iterative": geometric,
}


@dataclass(frozen=True)
class Schedule:
    """Sparsity rises from `initial` at step `begin` to its target at step `end`.

    begin, end: counted in steps of the optimizer, step 0 being before the first. With end equal
        to begin everything goes at once.
    frequency: steps from one update of the masks to the next; the last update is always at `end`.
    curve: a name of `CURVES`, or a callable (progress, final, initial) -> sparsity, progress from
        0 at `begin` to 1 at `end`. "cubic" is AGP (Zhu & Gupta, 2017, arXiv:1710.01878);
        "iterative" removes the same share of the survivors in each update, so that `frequency` is
        how long to retrain in between.
    initial: the sparsity at `begin`.

    Raises ValueError or TypeError naming the argument that does not fit.
    """

    begin: int = 0
    end: int = 0
    frequency: int = 100
    curve: str | Curve = "cubic"
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_count("Schedule", "begin", self.begin, least=0)
        check_count("Schedule", "end", self.end, least=self.begin)
        check_count("Schedule", "frequency", self.frequency)
        if isinstance(self.curve, str) and self.curve not in CURVES:
            way_out = suggest(self.curve, CURVES)
            raise bad("Schedule", "curve", "a known name or a callable", repr(self.curve), way_out)
        if not isinstance(self.curve, str) and not callable(self.curve):
            expected, got = "a known name or a callable", repr(self.curve)
            raise bad_type("Schedule", "curve", expected, got, suggest("", CURVES))

    def due(self, step: int) -> bool:
        """Whether the masks are to be updated at this step."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.frequency == 0

    def sparsity(self, step: int, final: float) -> float:
        """The sparsity at this step on the way to `final`; 0 before `begin`."""
        if step < self.begin:
            return 0.0
        progress = 1.0 if step >= self.end else (step - self.begin) / (self.end - self.begin)
        curve = CURVES[self.curve] if isinstance(self.curve, str) else self.curve
        return curve(progress, final, self.initial)

    def sparsities(self, step: int, final: float | Mapping[str, float]) -> float | dict[str, float]:
        """The same for one target, or for each of {name: target}."""
        if isinstance(final, Mapping):
            return {name: self.sparsity(step, share) for name, share in final.items()}
        return self.sparsity(step, final)
