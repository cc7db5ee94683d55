"""Seconds that a run may take in all."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """What is left of some seconds, counted from now.

    Args:
        seconds: in all.
        now: a clock in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    def left(self) -> float:
        """Seconds, never below 0."""
        return max(0.0, self._end - self._now())

    def share(self, most: float, keep: float = 0.0) -> float:
        """What a stage may take: at most `most`, with `keep` left for what comes after it."""
        return max(0.0, min(most, self.left() - keep))
