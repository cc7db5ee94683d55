"""Runtimes take turns; between turns the machine falls silent."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

from .prepared import Prepared

WARM_S, TIMED_S = 0.005, 0.02
"""Of a turn: calls that are not counted, then calls that are."""

PAUSE_S = 0.02
"""Of idle threads before a turn starts."""

LONGEST_PAUSES = 25
IDLE = 0.1
"""Share of one core below which this process counts as idle."""

ROUNDS = 3


def take_turns(
    runtimes: Mapping[str, Prepared], seconds: float, pause_s: float = PAUSE_S
) -> dict[str, list[float]]:
    """Milliseconds of every counted call, by name.

    Args:
        runtimes: loaded networks; each has run before.
        seconds: stop after about this long, but not before `ROUNDS` turns of each.
        pause_s: see `fall_silent`.
    """
    names = list(runtimes)
    order = random.Random(0)  # no runtime always follows the same other
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    turns = 0
    while names and (turns < ROUNDS or time.perf_counter() < end):
        order.shuffle(names)
        for name in names:
            fall_silent(pause_s)
            times[name] += runtimes[name].burst(WARM_S, TIMED_S)
        turns += 1
    return times


def fall_silent(pause_s: float) -> None:
    """Sleeps until the threads of this process have been idle for `pause_s`; 0 does not wait.

    After a call, those of ONNX Runtime spin for 30 ms, those of torch for 10, and would hold a
    core that the next runtime needs. DeepSparse's, in another process, do not spin.
    """
    for _ in range(LONGEST_PAUSES if pause_s else 0):
        before = time.process_time()
        time.sleep(pause_s)
        if time.process_time() - before < IDLE * pause_s:
            return
