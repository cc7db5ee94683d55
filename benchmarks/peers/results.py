"""What was measured: rows, their CSV and their table."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from sparseprune.machine import machine

from .runtimes import Peer


@dataclass(frozen=True)
class Times:
    """Of all counted calls, in ms: median, quartiles, smallest."""

    ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    calls: int

    @staticmethod
    def of(calls: Sequence[float]) -> Times:
        """Of at least two calls."""
        low, middle, high = statistics.quantiles(calls, n=4, method="inclusive")
        return Times(middle, low, high, min(calls), len(calls))


@dataclass(frozen=True)
class Row:
    """One runtime in one case at one sparsity.

    Attributes:
        case, sparsity, runtime: what ran.
        times: None where it did not run or was refused; `note` says why.
        best_dense, best_dense_ms: the fastest float32 runtime that multiplies by zeros.
        difference: largest difference from torch eager / its largest output.
    """

    case: str
    sparsity: float
    runtime: str
    times: Times | None
    best_dense: str
    best_dense_ms: float | None
    difference: float | None
    note: str = ""

    @property
    def speedup(self) -> float | None:
        """The time of the fastest dense runtime / the time of this one."""
        if self.times is None or self.best_dense_ms is None:
            return None
        return self.best_dense_ms / self.times.ms

    def line(self) -> dict[str, Any]:
        """Flat, for CSV; empty where there is no number."""
        times = self.times
        numbers: dict[str, float | None] = {
            "ms": times.ms if times else None,
            "q1_ms": times.q1_ms if times else None,
            "q3_ms": times.q3_ms if times else None,
            "min_ms": times.min_ms if times else None,
            "best_dense_ms": self.best_dense_ms,
            "speedup": self.speedup,
            "difference": self.difference,
        }
        return {
            "case": self.case,
            "sparsity": self.sparsity,
            "runtime": self.runtime,
            **{key: "" if value is None else f"{value:.4g}" for key, value in numbers.items()},
            "calls": times.calls if times else 0,
            "best_dense": self.best_dense,
            "note": self.note,
        }


def facts(peers: Sequence[Peer], threads: int) -> dict[str, Any]:
    """What every number depends on: the machine, threads, the version of every runtime."""
    versions = {peer.package: peer.version() for peer in peers}
    return {**machine(), "threads": threads, **versions}


def write_csv(rows: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """One line per row, each with `about`, which facts() made."""
    with path.open("w", newline="") as file:
        lines = [{**row.line(), **about} for row in rows]
        writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def table(rows: Sequence[Row], peers: Sequence[Peer]) -> Table:
    """One case: ms of every runtime, sparseprune's two speedups; a line per sparsity."""
    table = Table(title=rows[0].case, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("zeros", justify="right")
    for peer in peers:
        table.add_column(peer.name, justify="right", style="" if peer.fp32 else "dim")
    for name in ("best dense", "DeepSparse"):
        table.add_column(f"speedup vs\n{name}", justify="right", style="bold")
    for sparsity, group in groupby(rows, lambda row: row.sparsity):
        found = {row.runtime: row for row in group}
        cells = (_cell(found[peer.name]) for peer in peers)
        table.add_row(f"{sparsity:.0%}", *cells, *map(_ratio, ratios(list(found.values()))))
    return table


def summary(rows: Sequence[Row]) -> Table:
    """Both ratios of every case, a column per sparsity."""
    shares = sorted({row.sparsity for row in rows})
    table = Table(title="speedup of sparseprune vs best dense, vs DeepSparse", box=SIMPLE)
    table.add_column("case")
    for share in shares:
        table.add_column(f"{share:.0%}", justify="right", no_wrap=True)
    for case, group in groupby(rows, lambda row: row.case):
        found = list(group)
        pairs = (ratios([row for row in found if row.sparsity == share]) for share in shares)
        table.add_row(case, *("  ".join(map(_ratio, pair)) for pair in pairs))
    return table


def describe(about: dict[str, Any]) -> str:
    """CPU, threads and versions in two lines."""
    known = ("sparseprune", "torch", "onnxruntime", "openvino", "deepsparse")
    versions = ", ".join(f"{name} {about[name]}" for name in known if about.get(name))
    head = f"{about['cpu']}, {about['isa']}, {about['threads']} threads, float32, {about['date']}"
    return f"{head}\n{versions}"


def _cell(row: Row) -> str:
    if row.times is None:
        return "[red]wrong[/]" if row.note.startswith("refused") else "-"
    ms = f"{row.times.ms:.3g}" if row.times.ms < 100 else f"{row.times.ms:.0f}"
    return f"[green]{ms}[/]" if row.runtime == row.best_dense else ms


def ratios(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """The fastest dense time and DeepSparse's, each / sparseprune's, of one case and sparsity."""
    ms = {row.runtime: row.times.ms for row in rows if row.times}
    own, dense = ms.get("sparseprune"), rows[0].best_dense_ms if rows else None
    if own is None:
        return None, None
    deepsparse = ms.get("DeepSparse")
    return dense and dense / own, deepsparse and deepsparse / own


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}x[/]"
