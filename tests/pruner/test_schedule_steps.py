"""Schedule and Regrowth: when, how far, by hand; bad input."""

from __future__ import annotations

import math

import pytest

from sparseprune.schedules import (
    CURVES,
    Regrowth,
    Schedule,
    geometric,
    iterative,
    one_shot,
    rigl,
    set_evolution,
)


def test_agp_by_hand() -> None:
    """Zhu & Gupta, equation 1, at n Delta t = end - begin."""
    plan = Schedule(begin=100, end=500, frequency=100)
    assert [step for step in range(700) if plan.due(step)] == [100, 200, 300, 400, 500]
    expected = [0.9 + (0 - 0.9) * (1 - t / 4) ** 3 for t in range(5)]
    assert [plan.sparsity(step, 0.9) for step in range(100, 501, 100)] == pytest.approx(expected)
    assert plan.sparsity(99, 0.9) == 0.0 and plan.sparsity(10**6, 0.9) == 0.9


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("frequency", [1, 7, 30, 1000])
def test_every_curve_ends_at_its_target(curve: str, frequency: int) -> None:
    plan = Schedule(10, 70, frequency, curve, initial=0.2)
    due = [step for step in range(100) if plan.due(step)]
    assert due[0] == 10 and due[-1] == 70
    shares = [plan.sparsity(step, 0.8) for step in due]
    assert shares == sorted(shares) and shares[-1] == 0.8
    assert due[:-1] == list(range(10, 70, frequency))


def test_one_shot_is_everything_at_the_end() -> None:
    plan = Schedule(begin=5, end=5)
    assert [plan.due(step) for step in range(4, 7)] == [False, True, False]
    assert plan.sparsity(5, 0.7) == 0.7
    assert one_shot(0.99, 0.7, 0.1) == 0.1 and one_shot(1, 0.7, 0.1) == 0.7


def test_iterative_is_the_geometric_curve() -> None:
    plan = Schedule(0, 300, 100, "iterative")
    assert [plan.sparsity(k * 100, 0.875) for k in (1, 2, 3)] == iterative(0.875, 3)
    assert geometric(0.5, 0.75) == 0.5 and geometric(0, 0.75, 0.25) == 0.25


def test_own_curve_and_many_targets() -> None:
    plan = Schedule(0, 10, 5, curve=lambda progress, final, initial: final * progress**2)
    assert plan.sparsities(5, {"a": 0.8, "b": 0.4}) == {"a": 0.2, "b": 0.1}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"begin": -1}, ValueError, "begin must be a whole number of at least 0, got -1"),
        ({"begin": 9, "end": 8}, ValueError, "end must be a whole number of at least 9, got 8"),
        ({"frequency": 0}, ValueError, "frequency must be a whole number of at least 1"),
        ({"end": 10.0}, TypeError, "end must be a whole number of at least 0, got 10.0"),
        ({"curve": "cubed"}, ValueError, "got 'cubed'; did you mean 'cubic'"),
        ({"curve": 3}, TypeError, "curve must be a known name or a callable, got 3"),
    ],
)
def test_bad_schedules(arguments: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"Schedule: .*{message}|{message}"):
        Schedule(**arguments)


def test_rigl_share_by_hand() -> None:
    rule = rigl(end=400)
    assert [step for step in range(600) if rule.due(step)] == [100, 200, 300, 400]
    assert rule.share(0) == 0.3 and rule.share(200) == pytest.approx(0.15)
    assert rule.share(100) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert rule.share(400) == 0.0


def test_set_share_is_constant() -> None:
    rule = set_evolution(end=1000, frequency=50, fraction=0.2)
    assert rule.share(50) == rule.share(1000) == 0.2 and rule.grow == "random"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end": 0}, "end must be a whole number of at least 1, got 0"),
        ({"end": 9, "begin": 0}, "begin must be a whole number of at least 1, got 0"),
        ({"end": 9, "fraction": 1.0}, "fraction must be between 0 and 1, got 1.0"),
        ({"end": 9, "grow": "grad"}, "grow must be 'gradient' or 'random', got 'grad'; did you"),
        ({"end": 9, "decay": "linear"}, "decay must be 'cosine' or 'constant', got 'linear'"),
    ],
)
def test_bad_regrowth(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regrowth(**arguments)
