"""Speedup over the fastest dense runtime against sparsity, one panel per case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Row, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with any colour vision (Okabe and Ito, 2008).
STYLES: dict[str, dict[str, Any]] = {
    "sparseprune": {"color": "#0072B2", "marker": "o"},
    "DeepSparse": {"color": "#D55E00", "marker": "s"},
    "OpenVINO bf16": {"color": "#999999", "marker": "^", "linestyle": ":"},
}
TICKS = (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
COLUMNS = 4


def speedups(rows: Sequence[Row], about: dict[str, Any], path: Path) -> Path:
    """Draws `STYLES`' runtimes; 1x is the fastest dense float32 runtime of the same run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = [(case, list(group)) for case, group in groupby(rows, lambda row: row.case)]
    columns = min(COLUMNS, len(cases))
    lines = ceil(len(cases) / columns)
    size = (max(7.0, 3.4 * columns), 2.9 * lines + 1.2)
    figure, grid = plt.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (case, group) in zip(grid.flat, cases, strict=False):
        _panel(axis, case, group)
    for axis in grid.flat[len(cases) :]:
        axis.set_visible(False)
    handles = {label: h for a in grid.flat for h, label in zip(*a.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(STYLES))
    figure.supylabel("speedup over the fastest dense float32 runtime (dashed)", fontsize=9)
    figure.suptitle(f"Pruned at random, every layer alike\n{describe(about)}", fontsize=10)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return path


def _panel(axis: Axes, case: str, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    for runtime, style in STYLES.items():
        points = [(r.sparsity, r.speedup) for r in rows if r.runtime == runtime and r.speedup]
        if points:
            axis.plot(*zip(*sorted(points), strict=True), label=runtime, markersize=4, **style)
    axis.axhline(1, color="black", linewidth=1, linestyle="--")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_locator(FixedLocator(TICKS))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_major_locator(FixedLocator(sorted({row.sparsity for row in rows})))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.tick_params(labelsize=8)
    axis.set_title(case, fontsize=9)
    axis.grid(alpha=0.3)
