"""What bench() measured: rows, their table, CSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sparseprune.machine import machine


@dataclass(frozen=True)
class BenchRow:
    """One network at one sparsity; times are medians in ms.

    Attributes:
        network: title.
        sparsity: asked for, of the layers that were pruned.
        eager_ms: of the pruned network, dense, in torch eager.
        compiled_ms, compiled_note: of torch.compile with frozen weights, or None and why.
        sparse_ms: of what convert() made.
        nonzeros, dense_bytes, packed_bytes: of all weights that could be packed.
        kernels, kept_dense: how many layers run packed in which layout, or dense for which reason.
        batch, threads: of all times in the row.
        weights: zeros included, that nonzeros is a part of.
        difference: largest difference of sparse from dense outputs / largest output.
    """

    network: str
    sparsity: float
    eager_ms: float
    compiled_ms: float | None
    compiled_note: str
    sparse_ms: float
    nonzeros: int
    dense_bytes: int
    packed_bytes: int
    kernels: str
    kept_dense: str
    batch: int = 1
    threads: int = 1
    weights: int = 0
    difference: float = 0.0

    @property
    def dense_ms(self) -> float:
        """The faster of the dense times."""
        return self.eager_ms if self.compiled_ms is None else min(self.eager_ms, self.compiled_ms)

    @property
    def speedup(self) -> float:
        """Against the faster of the dense times."""
        return self.dense_ms / self.sparse_ms

    @property
    def speedup_eager(self) -> float:
        """Against torch eager."""
        return self.eager_ms / self.sparse_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the attributes and both speedups."""
        return {**asdict(self), "speedup": self.speedup, "speedup_eager": self.speedup_eager}


def tally(names: Iterable[str]) -> str:
    """ "2 a; 1 b" of a, b, a; numbers in a bracket at the end do not tell names apart."""
    plain = (re.sub(r" \([^()]*\)$", "", name) for name in names)
    return "; ".join(f"{n} {name}" for name, n in Counter(plain).most_common())


def table(rows: Sequence[BenchRow]) -> Table:
    """Dense and sparse side by side, a section per network."""
    title = "Dense and sparse, ms per call (medians; taking turns in one run)"
    notes = sorted({row.compiled_note for row in rows if row.compiled_note})
    table = Table(title=title, caption="\n".join(f"torch.compile {note}" for note in notes))
    table.add_column("network", max_width=20)
    for header in (
        "batch",
        "sparsity",
        "dense eager",
        "dense compile",
        "sparse",
        "vs eager",
        "vs best",
    ):
        table.add_column(header, justify="right", max_width=9)
    table.add_column("nonzeros", justify="right")
    table.add_column("weights in MB", justify="right", min_width=13, max_width=13)
    table.add_column("sparse layers")
    table.add_column("layers kept dense, and why")
    for i, row in enumerate(rows):
        first = i == 0 or rows[i - 1].network != row.network
        last = i + 1 == len(rows) or rows[i + 1].network != row.network
        table.add_row(
            row.network if first else "",
            str(row.batch),
            f"{row.sparsity:.0%}",
            f"{row.eager_ms:.3f}",
            "-" if row.compiled_ms is None else f"{row.compiled_ms:.3f}",
            f"{row.sparse_ms:.3f}",
            f"{row.speedup_eager:.2f}x",
            f"{row.speedup:.2f}x",
            f"{row.nonzeros / 1e6:.2f} M",
            f"{row.dense_bytes / 1e6:.1f} > {row.packed_bytes / 1e6:.1f}",
            row.kernels or "-",
            row.kept_dense or "-",
            end_section=last,
        )
    return table


def write_csv(rows: Sequence[BenchRow], path: Path) -> None:
    """One line per row, with the machine."""
    lines = [{**machine(), **row.to_dict()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


def write_json(rows: Sequence[BenchRow], path: Path) -> None:
    """{"machine": ..., "rows": [...]}"""
    content = {"machine": machine(), "rows": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n")
