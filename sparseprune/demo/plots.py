"""Step 5: pictures of what was pruned and of what it bought."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from torch import nn

from sparseprune.bench import BenchRow
from sparseprune.demo.accuracy import Accuracy
from sparseprune.demo.train import weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with any colour vision (Okabe and Ito, 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
TICKS = (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def weight_maps(title: str, model: nn.Module, path: Path) -> Path:
    """One picture per layer, rows = outputs, columns = inputs x kernel; black = pruned."""
    shapes = [w.shape[1:] for w in weights(model).values()]
    layers = {name: w.flatten(1).ne(0) for name, w in weights(model).items()}
    figure = plt.figure(figsize=(3.2 * len(layers), 6), layout="constrained")
    axes = figure.subplots(1, len(layers), squeeze=False)[0]
    for axis, shape, (name, mask) in zip(axes, shapes, layers.items(), strict=True):
        axis.imshow(
            mask.numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        kept = float(mask.float().mean())
        axis.set_title(f"{name.removesuffix('.weight')}\n{kept:.1%} kept", fontsize=10)
        axis.set_xlabel(f"{' x '.join(map(str, shape))} inputs")
        axis.set_ylabel(f"{len(mask)} outputs")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    zeros = 1 - sum(int(m.sum()) for m in layers.values()) / sum(m.numel() for m in layers.values())
    figure.suptitle(f"{title} on digits: {zeros:.1%} of the weights pruned (black)")
    return _save(figure, path)


def accuracy_curves(results: list[Accuracy], path: Path) -> Path:
    """Accuracy after each round against the weights left; mean and min-to-max band over seeds."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for result, color in zip(results, COLORS, strict=False):
        rounds = list(zip(*(trial.rounds for trial in result.trials), strict=True))
        left = [1 - mean(r.sparsity for r in states) for states in rounds]
        levels = [[r.accuracy for r in states] for states in rounds]
        means = [mean(level) for level in levels]
        low, high = [min(level) for level in levels], [max(level) for level in levels]
        axis.plot(left, means, "o-", color=color, markersize=4, label=result.title)
        axis.fill_between(left, low, high, color=color, alpha=0.18, linewidth=0)
        axis.axhline(means[0], color=color, linestyle=":", linewidth=1)
    seeds = len(results[0].trials)
    axis.set_xscale("log", base=2)
    axis.invert_xaxis()
    axis.set_xticks([2.0**-i for i in range(4)] + [1 / 12])
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{100 * (1 - v):.3g}%\n{1 / v:.0f}x")
    )
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(PercentFormatter(decimals=1))
    bottom, top = axis.get_ylim()
    # Below the curves there is room for the legend, and a tenth of a point looks as small as it is.
    axis.set_ylim(bottom - max(0.5 * (top - bottom), 0.6), min(top + 0.2, 100.2))
    axis.set_xlabel("sparsity of the weights, and compression (log scale)")
    axis.set_ylabel("test accuracy")
    axis.set_title("Iterative magnitude pruning with retraining on digits")
    axis.grid(alpha=0.3)
    axis.legend(title=f"mean, band = min to max of {seeds} seeds\ndotted = dense", loc="lower left")
    return _save(figure, path)


def speed_curves(rows: list[BenchRow], path: Path, subtitle: str) -> Path:
    """Speedup against sparsity, against the faster dense time and against eager."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.8), sharey=True, sharex=True, layout="constrained"
    )
    for (network, group), color in zip(groupby(rows, lambda r: r.network), COLORS, strict=False):
        points = list(group)
        sparsities = [row.sparsity for row in points]
        best, eager = [r.speedup for r in points], [r.speedup_eager for r in points]
        left.plot(sparsities, best, "o-", color=color, label=network)
        right.plot(sparsities, eager, "o-", color=color, label=network)
    compiled = any(row.compiled_ms is not None for row in rows)
    values = [speed for row in rows for speed in (row.speedup, row.speedup_eager)]
    left.set_ylim(min(0.5, 0.9 * min(values)), max(2.0, 1.15 * max(values)))
    left.set_xticks(sorted({row.sparsity for row in rows}))
    _finish_speed(left, f"against the faster of eager{' and torch.compile' if compiled else ''}")
    _finish_speed(right, "against torch eager")
    left.set_ylabel("speedup (dense ms / sparse ms)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLORS))
    figure.suptitle(f"Speedup of converted networks\n{subtitle}", fontsize=11)
    return _save(figure, path)


def _finish_speed(axis: Axes, title: str) -> None:
    axis.axhline(1, color="black", linewidth=1.2, linestyle="--")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_locator(FixedLocator(TICKS))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("sparsity of every layer (dashed: as fast as dense)")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
