"""Sparsity for each round of a prune, retrain, repeat loop."""

from __future__ import annotations

from sparseprune.errors import bad, bad_type, check_sparsity
from sparseprune.schedules.curves import geometric


def iterative(final: float, rounds: int, initial: float = 0.0) -> list[float]:
    """s_k = 1 - (1 - s_i) ((1 - s_f) / (1 - s_i))^(k / K) for k = 1..K.

    Every round removes the same share of the survivors; the last sparsity is exactly `final`.
    Prune, retrain, repeat is Han et al. (2015, arXiv:1506.02626); the equal share per round is
    Frankle & Carbin (2019, arXiv:1803.03635).
    """
    end = check_sparsity("iterative", "final", final)
    start = check_sparsity("iterative", "initial", initial)
    expected, way_out = "a whole number of at least 1", "pass how often to prune and retrain"
    if isinstance(rounds, bool) or not isinstance(rounds, int):
        raise bad_type("iterative", "rounds", expected, repr(rounds), way_out)
    if rounds < 1:
        raise bad("iterative", "rounds", expected, rounds, way_out)
    if start > end:
        raise bad(
            "iterative", "initial", f"at most final, {end}", start, "removed weights stay out"
        )
    return [geometric(k / rounds, end, start) for k in range(1, rounds + 1)]
