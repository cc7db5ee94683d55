"""What is shown of work that takes long; silent unless standard error is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

_shown: list[str] = []
"""Labels of what is on the terminal: one at a time, what runs inside it stays silent."""


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """The items, counted on a bar while they are used; `total` if `items` has no length."""
    if _silent():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    with _showing(label), bar:
        yield from bar.track(items, total=total, description=label)


@contextmanager
def status(label: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on, for work of unknown length; gives what changes it."""
    if _silent():
        yield lambda text: None
        return
    from rich.console import Console

    with _showing(label), Console(stderr=True).status(label) as line:
        yield line.update


def _silent() -> bool:
    return bool(_shown) or not sys.stderr.isatty()


@contextmanager
def _showing(label: str) -> Iterator[None]:
    _shown.append(label)
    try:
        yield
    finally:
        _shown.remove(label)
