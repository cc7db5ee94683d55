"""The README's table, from the CSV that the demo wrote.

python benchmarks/readme_table.py benchmarks/results/demo-<cpu>.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HEADERS = (
    "network",
    "sparsity",
    "eager ms",
    "compile ms",
    "sparse ms",
    "vs eager",
    "vs best",
    "weights MB",
    "packed layers",
    "kept dense",
)


def markdown(path: Path) -> str:
    """One line per row of the CSV, and the machine it names."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    for row in rows:
        megabytes = (float(row[key]) / 1e6 for key in ("dense_bytes", "packed_bytes"))
        cells = (
            row["network"],
            f"{float(row['sparsity']):.0%}",
            f"{float(row['eager_ms']):.2f}",
            f"{float(row['compiled_ms']):.2f}" if row["compiled_ms"] else "-",
            f"{float(row['sparse_ms']):.2f}",
            f"{float(row['speedup_eager']):.1f}x",
            f"{float(row['speedup']):.1f}x",
            " > ".join(f"{value:.1f}" for value in megabytes),
            row["kernels"] or "-",
            row["kept_dense"] or "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    here = rows[0]
    lines += [
        "",
        f"{here['cpu']}, {here['threads']} threads, {here['isa']}, torch {here['torch']}, "
        f"sparseprune {here['sparseprune']}, {here['date']}: {path.as_posix()}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
