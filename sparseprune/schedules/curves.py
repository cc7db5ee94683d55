"""Sparsity as a function of progress t, from `initial` at t = 0 to `final` at t = 1.

t is (step - begin) / (end - begin); outside [0, 1] it counts as the nearer end, so that a
training loop may call a schedule before its begin and after its end.
"""

from __future__ import annotations

import math

from sparseprune.errors import bad, check_sparsity


def one_shot(progress: float, final: float, initial: float = 0.0) -> float:
    """s_i until t = 1, then s_f: everything at once."""
    return _blend("one_shot", initial, final, float(_clamped("one_shot", progress) < 1))


def linear(progress: float, final: float, initial: float = 0.0) -> float:
    """s_f + (s_i - s_f)(1 - t): equal steps."""
    return _blend("linear", initial, final, 1 - _clamped("linear", progress))


def cosine(progress: float, final: float, initial: float = 0.0) -> float:
    """s_f + (s_i - s_f)(1 + cos(pi t)) / 2: slow at both ends.

    The annealing curve of Loshchilov & Hutter (2017, arXiv:1608.03983), applied to sparsity.
    """
    left = (1 + math.cos(math.pi * _clamped("cosine", progress))) / 2
    return _blend("cosine", initial, final, left)


def cubic(progress: float, final: float, initial: float = 0.0) -> float:
    """s_f + (s_i - s_f)(1 - t)^3: fast while weights are plenty, slow at the end.

    Automated gradual pruning, AGP (Zhu & Gupta, 2017, arXiv:1710.01878, equation 1).
    """
    return _blend("cubic", initial, final, (1 - _clamped("cubic", progress)) ** 3)


def geometric(progress: float, final: float, initial: float = 0.0) -> float:
    """1 - (1 - s_i) ((1 - s_f) / (1 - s_i))^t: in equal times, equal shares of the survivors.

    The curve of `iterative`: prune, retrain, repeat (Han et al., 2015, arXiv:1506.02626; the
    equal share per round is Frankle & Carbin, 2019, arXiv:1803.03635).
    """
    t = _clamped("geometric", progress)
    start = check_sparsity("geometric", "initial", initial)
    end = check_sparsity("geometric", "final", final)
    if t in (0, 1):
        return end if t else start  # both ends are hit exactly
    return 1 - (1 - start) * float(((1 - end) / (1 - start)) ** t)


def _clamped(operation: str, progress: float) -> float:
    if math.isnan(progress):
        raise bad(operation, "progress", "a number", progress, "pass step / steps")
    return min(max(float(progress), 0.0), 1.0)


def _blend(operation: str, initial: float, final: float, left: float) -> float:
    """`left` is the share of the way still to go; both ends are hit exactly."""
    start = check_sparsity(operation, "initial", initial)
    end = check_sparsity(operation, "final", final)
    return start if left == 1 else end + (start - end) * left
