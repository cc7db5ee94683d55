"""What was timed: rows, their CSV, their table, their picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

NO_TIME = "no time left"


@dataclass(frozen=True)
class Row:
    """One format on one pruned layer, beside the dense layer timed in turn with it.

    Attributes:
        layer, pruned: titles of problem and case.
        runs: format with its grid or layout and who computes; "" if nothing ran.
        eager_ms, compile_ms: of the dense layer, by cuBLAS or cuDNN and by torch.compile.
        ms: of the packed one; None where it did not run, and `note` says why.
        cap: what the hardware allows for dense_ms / ms; None on an unknown device.
        target: what dense_ms / ms should be; None: for the record.
        error: largest difference from float64 / its largest output.
    """

    layer: str
    pruned: str
    runs: str
    eager_ms: float | None = None
    compile_ms: float | None = None
    ms: float | None = None
    cap: float | None = None
    target: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def dense_ms(self) -> float | None:
        """The faster of the dense ones."""
        known = [ms for ms in (self.eager_ms, self.compile_ms) if ms is not None]
        return min(known, default=None)

    @property
    def ratio(self) -> float | None:
        """dense_ms / ms."""
        return None if self.ms is None or self.dense_ms is None else self.dense_ms / self.ms

    @property
    def share_of_cap(self) -> float | None:
        """ratio / cap."""
        return None if self.ratio is None or self.cap is None else self.ratio / self.cap

    def line(self) -> dict[str, Any]:
        """Flat, for CSV; empty where there is no number."""
        derived = {"dense_ms": self.dense_ms, "ratio": self.ratio,
                   "share_of_cap": self.share_of_cap}  # fmt: skip
        values = {**asdict(self), **derived}
        values["note"] = values.pop("note")  # last
        return {
            name: "" if v is None else f"{v:.4g}" if isinstance(v, float) else v
            for name, v in values.items()
        }


def write_csv(rows: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """One line per row, each with `about`: device and versions."""
    with path.open("w", newline="") as file:
        lines = [{**row.line(), **about} for row in rows]
        writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def read_csv(path: Path) -> list[Row]:
    """The rows of a file of :func:`write_csv`."""
    numbers = {f.name for f in fields(Row) if f.type == "float | None"}
    with path.open(newline="") as file:
        return [
            Row(**{
                f.name: (float(v) if v else None) if f.name in numbers else v
                for f in fields(Row)
                for v in [line[f.name]]
            })
            for line in csv.DictReader(file)
        ]  # fmt: skip


COLUMNS = ("layer", "pruned", "runs", "dense ms", "ms", "ratio", "cap", "target", "")


def table(rows: Sequence[Row]) -> str:
    """Plain text, for consoles without rich: the best row of every case."""
    cells = [COLUMNS, *(_cells(row) for row in best(rows))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    text = (
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    )
    return "\n".join(line.rstrip() for line in text)


def best(rows: Sequence[Row]) -> list[Row]:
    """Of every case the fastest row, else what says why there is none."""
    cases: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = cases.setdefault((row.layer, row.pruned), row)
        if (row.ratio or 0.0) > (before.ratio or 0.0):
            cases[row.layer, row.pruned] = row
    return list(cases.values())


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    verdict = row.note[:40]
    if row.ratio is not None and row.target is not None:
        verdict = "reached" if row.ratio >= row.target else "missed"
    return (
        row.layer, row.pruned, row.runs or "-", number(row.dense_ms, ".4f"), number(row.ms, ".4f"),
        number(row.ratio, ".2f"), number(row.cap, ".2f"), number(row.target, ".2f"), verdict,
    )  # fmt: skip


def plot(rows: Sequence[Row], about: dict[str, Any], path: Path) -> None:
    """Ratio of every case beside what the hardware allows. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in best(rows) if row.ratio is not None]
    figure, axis = plt.subplots(figsize=(9, 1.5 + 0.32 * len(shown)), layout="constrained")
    places = range(len(shown))
    axis.barh(places, [row.cap or 0.0 for row in shown], color="#dddddd", label="hardware allows")
    axis.barh(places, [row.ratio or 0.0 for row in shown], 0.5, color="#0072B2", label="measured")
    targets = {i: row.target for i, row in enumerate(shown) if row.target is not None}
    axis.scatter([*targets.values()], [*targets], color="#D55E00", marker="|", s=90, label="goal")
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(places, [f"{row.layer}, {row.pruned}: {row.runs}" for row in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("time of the faster dense layer / time of the packed one, cold L2")
    axis.set_title(f"{about.get('device', '')}, torch {about.get('torch', '')}", fontsize=9)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
