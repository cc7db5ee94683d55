"""Schedules: values by hand, ends, monotonic growth, bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseprune.schedules import cosine, cubic, iterative, linear

CURVES = [linear, cosine, cubic]
Curve = Callable[..., float]
shares = st.floats(0, 0.99)


@pytest.mark.parametrize(
    ("curve", "quarter", "half"),
    [(linear, 0.3, 0.5), (cosine, 0.1 + 0.8 * (2 - math.sqrt(2)) / 4, 0.5), (cubic, 0.5625, 0.8)],
    ids=["linear", "cosine", "cubic"],
)
def test_values_by_hand(curve: Curve, quarter: float, half: float) -> None:
    assert curve(0.25, 0.9, 0.1) == pytest.approx(quarter)
    assert curve(0.5, 0.9, 0.1) == pytest.approx(half)


@pytest.mark.parametrize("curve", CURVES)
@settings(deadline=None)
@given(final=shares, initial=shares)
def test_both_ends_are_exact_and_held(curve: Curve, final: float, initial: float) -> None:
    assert curve(0, final, initial) == curve(-1, final, initial) == initial
    assert curve(1, final, initial) == curve(7.5, final, initial) == final


@pytest.mark.parametrize("curve", CURVES)
@settings(deadline=None)
@given(final=shares, a=st.floats(0, 1), b=st.floats(0, 1))
def test_curves_never_go_back(curve: Curve, final: float, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= curve(low, final) <= curve(high, final) + 1e-15 and curve(high, final) < 1


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 1.0), r"final must be a number in \[0, 1\), got 1.0"),
        ((0.5, 0.9, -0.1), r"initial must be a number in \[0, 1\), got -0.1"),
        ((math.nan, 0.9), "progress must be a number, got nan; pass step / steps"),
    ],
)
def test_bad_curves(curve: Curve, arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"{curve.__name__}: {message}"):
        curve(*arguments)


def test_iterative_by_hand() -> None:
    assert iterative(0.875, 3) == [0.5, 0.75, 0.875]
    assert iterative(0.9, 1) == [0.9]
    assert iterative(0.5, 2, initial=0.5) == [0.5, 0.5]


@settings(deadline=None)
@given(final=shares, initial=shares, rounds=st.integers(1, 30))
def test_iterative_shrinks_survivors_by_one_factor(
    final: float, initial: float, rounds: int
) -> None:
    initial, final = sorted((initial, final))
    steps = iterative(final, rounds, initial)
    assert len(steps) == rounds and steps[-1] == final
    density = [1 - s for s in [initial, *steps]]
    factor = ((1 - final) / (1 - initial)) ** (1 / rounds)
    for before, after in itertools.pairwise(density):
        assert after / before == pytest.approx(factor)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((0.9, 0), ValueError, "rounds must be a whole number of at least 1, got 0"),
        ((0.9, 2.0), TypeError, "rounds must be a whole number of at least 1, got 2.0"),
        ((0.9, True), TypeError, "rounds must be a whole number"),
        ((1.0, 3), ValueError, "final must be a number"),
        ((0.5, 3, 0.9), ValueError, "initial must be at most final, 0.5, got 0.9"),
    ],
)
def test_bad_iterative(arguments: tuple[float, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"iterative: {message}"):
        iterative(*arguments)
