"""What sparseprune means to reach beside the others, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from .results import Row, ratios

DEEPSPARSE = 1.25
"""Least ratio to DeepSparse in every case of `TARGETS`, from this share of zeros on: `HIGH`."""
HIGH = 0.8

TARGETS: dict[str, dict[float, float]] = {
    "4 x Linear 1024 + ReLU, 128 rows": {0.5: 1.4, 0.7: 2.0, 0.8: 2.7, 0.9: 4.5, 0.95: 7.0},
    "4 x Linear 1024 + ReLU, 32 rows": {0.7: 1.6, 0.8: 2.3, 0.9: 4.0, 0.95: 6.0},
    "4 x Linear 1024 + ReLU, 1 row": {0.9: 1.5, 0.95: 2.5},
    "Linear 4096x4096, 1 row": {0.5: 1.5, 0.7: 2.4, 0.8: 3.3, 0.9: 5.5, 0.95: 9.0},
    "4 x conv 3x3 + ReLU, 256 ch, 14x14, b1": {0.5: 1.2, 0.7: 1.8, 0.8: 2.5, 0.9: 4.3, 0.95: 7.5},
    "4 x conv 3x3 + ReLU, 64 ch, 56x56, b1": {0.5: 1.1, 0.7: 1.7, 0.8: 2.3, 0.9: 3.6, 0.95: 5.0},
    "4 x conv 1x1 + ReLU, 512 ch, 14x14, b1": {0.5: 1.3, 0.7: 2.0, 0.8: 2.8, 0.9: 4.8, 0.95: 7.5},
    "MobileNetV1, b1": {0.7: 1.4, 0.8: 1.9, 0.9: 2.8, 0.95: 3.3},
    "MobileNetV1, b16": {0.7: 1.6, 0.8: 2.4, 0.9: 3.2, 0.95: 4.0},
    "ResNet-50, b1": {0.7: 1.3, 0.8: 1.7, 0.9: 2.5, 0.95: 3.2},
    "ResNet-50, b16": {0.7: 2.0, 0.8: 2.7, 0.9: 4.3, 0.95: 5.5},
    "VGG-16, b1": {0.7: 1.6, 0.8: 2.1, 0.9: 3.2, 0.95: 4.2},
}
"""Title of a case -> share of zeros -> least ratio to the best dense runtime, of two threads."""


def reached(rows: Sequence[Row]) -> Table:
    """Every target that `rows` measure, with what was measured; red where it was missed."""
    table = Table(title="targets", box=SIMPLE)
    table.add_column("case")
    for name in ("zeros", "vs best dense", "target", "vs DeepSparse", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for case, targets in TARGETS.items():
        for share, least in targets.items():
            found = [row for row in rows if row.case == case and row.sparsity == share]
            if not found:
                continue
            dense, deepsparse = ratios(found)
            other = DEEPSPARSE if share >= HIGH else None
            table.add_row(case, f"{share:.0%}", *_pair(dense, least), *_pair(deepsparse, other))
    return table


def _pair(ratio: float | None, least: float | None) -> tuple[str, str]:
    target = "" if least is None else f"{least:.2f}x"
    if ratio is None or least is None:
        return "-" if ratio is None else f"{ratio:.2f}x", target
    color = "green" if ratio >= least else "red"
    return f"[{color}]{ratio:.2f}x[/]", target
