"""What an experiment is: rows of every seed, beside published numbers, and claims about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from .training import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One number: of a network, in a line (`setting`) and a column (`measure`) of its table."""

    network: str
    setting: str
    measure: str
    value: float


@dataclass(frozen=True)
class Published:
    """Numbers of a paper, printed in the table of `network` below the same `setting`.

    of: the network and data they were measured with.
    numbers: measure -> as printed.
    """

    network: str
    setting: str
    of: str
    numbers: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    """Rows by seed."""

    seeds: Mapping[int, Sequence[Row]]

    def values(self, network: str, setting: str, measure: str) -> list[float]:
        """One per seed that has it; empty if none has."""
        wanted = (network, setting, measure)
        return [
            row.value
            for rows in self.seeds.values()
            for row in rows
            if (row.network, row.setting, row.measure) == wanted
        ]

    def median(self, network: str, setting: str, measure: str) -> float:
        """Of all seeds, which must have it."""
        return median(self.values(network, setting, measure))

    def networks(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.network for rows in self.seeds.values() for row in rows))

    def settings(self, network: str) -> list[str]:
        """Lines of the network's table, in the order of the rows."""
        return self._of(network, "setting")

    def measures(self, network: str) -> list[str]:
        """Columns of the network's table, in the order of the rows."""
        return self._of(network, "measure")

    def _of(self, network: str, part: str) -> list[str]:
        rows = (row for rows in self.seeds.values() for row in rows if row.network == network)
        return list(dict.fromkeys(getattr(row, part) for row in rows))


@dataclass(frozen=True)
class Claim:
    """What should come out: `check` says whether it did, and the numbers that say so."""

    text: str
    check: Callable[[Results], tuple[bool, str]]


@dataclass(frozen=True)
class Experiment:
    """One experiment, see the package's docstring.

    run: the rows of one seed; the same task and seed give the same rows.
    differs: what differs from the published experiments, beside the data.
    draw: fills an empty figure.
    """

    name: str
    title: str
    run: Callable[[Task, int], Iterator[Row]]
    published: Sequence[Published]
    differs: str
    draw: Callable[[Results, Figure], None]
    claims: Sequence[Claim] = field(default=())
