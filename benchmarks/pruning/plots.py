"""Pictures: medians over seeds, with a band or a bar from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .experiment import Experiment, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with any colour vision (Okabe and Ito, 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")


def save(experiment: Experiment, results: Results, data: str, path: Path) -> None:
    """Draws the experiment to a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # without a display any other backend may fail
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    experiment.draw(results, figure)
    band = f"{len(results.seeds)} seeds: median, smallest and largest"
    figure.suptitle(f"{experiment.title}, {data} ({band})", fontsize=11)
    figure.savefig(path, dpi=120, facecolor="white")
    plt.close(figure)


def curve(
    axis: Axes,
    points: Sequence[tuple[float, Sequence[float]]],
    label: str,
    number: int,
) -> None:
    """One line of (x, values over seeds) with its band, in the `number`th style."""
    points = [(x, values) for x, values in points if values]
    color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
    xs = [x for x, _ in points]
    middle = [median(values) for _, values in points]
    axis.plot(xs, middle, color=color, linestyle=style, marker="o", markersize=3, label=label)
    low, high = [min(values) for _, values in points], [max(values) for _, values in points]
    axis.fill_between(xs, low, high, color=color, alpha=0.13, linewidth=0)


def by_setting(
    axis: Axes, results: Results, network: str, x_of: Callable[[str], float | None]
) -> None:
    """A curve per measure over the settings that `x_of` gives an x."""
    places = [(x, s) for s in results.settings(network) if (x := x_of(s)) is not None]
    for number, measure in enumerate(results.measures(network)):
        points = [(x, results.values(network, setting, measure)) for x, setting in places]
        curve(axis, points, measure, number)
    axis.set_title(network, fontsize=10)
    axis.grid(alpha=0.3)


def bars(axis: Axes, names: Sequence[str], values: Sequence[Sequence[float]], label: str) -> None:
    """A bar per name up to the median, a line from the smallest to the largest."""
    middle = [median(v) for v in values]
    reach = [
        [m - min(v) for m, v in zip(middle, values, strict=True)],
        [max(v) - m for m, v in zip(middle, values, strict=True)],
    ]
    axis.barh(list(names), middle, xerr=reach, color=COLORS[0], error_kw={"lw": 1}, label=label)
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
    axis.set_xlabel(label)
