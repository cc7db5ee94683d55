"""What a runtime hands back: a loaded network that gives its output and takes its turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from .worker import burst


class Prepared(Protocol):
    """A network loaded in one runtime."""

    def output(self) -> Tensor:
        """Runs once, returns what came out."""

    def burst(self, warm_s: float, timed_s: float) -> list[float]:
        """See `worker.burst`."""

    def close(self) -> None:
        """Gives back processes and files."""


class InProcess:
    """A network that one call runs, in this process."""

    def __init__(
        self,
        run: Callable[[], Any],
        read: Callable[[Any], Tensor] = lambda output: output,
        mode: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`run` is timed, inside of `mode()`; `read` makes a tensor of what it returned."""
        self.run, self.read, self.mode = run, read, mode

    def output(self) -> Tensor:
        """Runs once, returns what came out."""
        with self.mode():
            return self.read(self.run())

    def burst(self, warm_s: float, timed_s: float) -> list[float]:
        """See `worker.burst`."""
        with self.mode():
            ms: list[float] = burst(self.run, warm_s, timed_s)
        return ms

    def close(self) -> None:
        """Nothing is held."""
