"""Targeted dropout (Gomez et al., 2019): accuracy when cut after training, without retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sparseprune.selection import prunable_weights
from sparseprune.training import L1, Method
from sparseprune.training.hard_concrete import HardConcrete
from sparseprune.training.targeted_dropout import TargetedDropout, candidates
from sparseprune.training.variational import VariationalDropout

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import CONV, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.2
LAST = "fc2"
CUTS = tuple(range(0, 100, 10))
GRANULARITIES = ("weight", "unit")
NONE, DROP, VARIATIONAL, LASSO, GATES = "none", "dropout .25", "variational", "L1", "L0"
TARGETED = {
    "targeted .50/.50": (0.5, 0.5),
    "targeted .33/.75": (0.33, 0.75),
    "targeted .66/.75": (0.66, 0.75),
    "targeted .75/.90": (0.75, 0.9),
}
"""Name -> alpha, how often what may be dropped is dropped, and gamma, the share that may."""

BEST = "targeted .75/.90"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Trains once per column and granularity, then cuts the smallest more and more."""
    own = task.part(SHARE)
    for granularity in GRANULARITIES:
        for column, methods in _methods(own, granularity).items():
            model = own.build(CONV, seed)
            own.fit(model, seed, methods=methods)
            for cut in CUTS:
                accuracy = 100 - own.error(_cut(model, cut / 100, granularity))
                yield Row(table(granularity), f"{cut} % cut", column, accuracy)


def table(granularity: str) -> str:
    """Name of the table."""
    return f"{CONV}, {granularity}s, accuracy %"


def _methods(task: Task, granularity: str) -> dict[str, Sequence[Method]]:
    """Columns of the table: dropout and gates of weights or of units, the rest as it is."""
    samples = len(task.images.x_train)
    targeted = {
        name: [TargetedDropout(alpha, gamma, granularity, ignore=LAST)]
        for name, (alpha, gamma) in TARGETED.items()
    }
    warmup, gates = (0, task.steps // 2), "weight" if granularity == "weight" else "output"
    return {
        NONE: [],
        DROP: [TargetedDropout(0.25, 1.0, granularity, rescale=True, ignore=LAST)],
        **targeted,
        VARIATIONAL: [VariationalDropout(samples, warmup, lr=1e-2, ignore=LAST)],
        LASSO: [L1(1e-4, ignore=LAST)],
        GATES: [HardConcrete(0.1, samples, gates, drop=0.2, lr=1e-2, ignore=LAST)],
    }


@torch.no_grad()
def _cut(model: nn.Module, share: float, granularity: str) -> nn.Module:
    """A copy without the smallest weights of each unit, or units of each layer; not the last."""
    copy = deepcopy(model)
    for weight in prunable_weights(copy, LAST).values():
        weight.masked_fill_(candidates(weight, share, granularity), 0)
    return copy


def _far_above(granularity: str, cut: int, results: Results) -> tuple[bool, str]:
    found = {
        column: results.median(table(granularity), f"{cut} % cut", column)
        for column in (BEST, NONE, DROP)
    }
    said = ", ".join(f"{column} {accuracy:.1f} %" for column, accuracy in found.items())
    return all(found[BEST] >= found[other] + 10 for other in (NONE, DROP)), said


def draw(results: Results, figure: Figure) -> None:
    """Accuracy against what is cut, weights and units."""
    for axis, granularity in zip(figure.subplots(1, 2), GRANULARITIES, strict=True):
        plots.by_setting(axis, results, table(granularity), lambda s: float(s.split()[0]))
        axis.set_xlabel(f"{granularity}s cut after training, percent")
        axis.set_ylabel("test accuracy, percent")
    axis.legend(fontsize=7)


PAPER = {
    "weight": """
        0 93.71 93.62 93.03 89.88 92.64 92.53 92.09 92.80 88.83
        10 93.72 93.63 93.04 89.80 92.62 92.55 92.00 92.72 90.66
        20 93.77 93.66 93.02 89.93 92.63 92.48 92.02 92.84 88.64
        30 93.59 93.58 92.98 89.89 92.66 92.53 92.07 92.63 87.16
        40 93.09 93.45 93.03 89.75 92.70 92.63 92.12 92.80 85.31
        50 92.20 93.07 92.99 89.72 92.65 92.54 91.84 92.29 80.94
        60 90.46 90.81 92.66 89.84 92.70 92.55 91.48 91.20 69.48
        70 81.88 72.29 92.22 89.80 92.66 92.56 90.23 86.30 46.19
        80 32.02 19.84 84.03 85.80 91.86 92.54 83.44 63.00 23.71
        90 14.63 10.05 28.27 27.04 67.58 92.48 15.16 21.08 12.55
    """,
    "unit": """
        0 93.69 92.43 92.21 90.46 89.38 89.78 93.14 93.31 93.35
        10 90.05 67.52 91.96 88.44 89.48 90.18 92.91 91.03 83.01
        20 80.34 25.05 91.63 83.55 88.89 89.79 90.38 85.63 54.59
        30 59.94 13.47 91.30 69.82 88.84 89.88 86.38 72.19 21.34
        40 35.40 10.02 89.89 54.42 87.54 89.98 83.59 46.41 10.82
        50 12.63 9.97 88.41 28.88 84.86 90.05 65.79 26.72 15.04
        60 10.65 9.99 26.55 18.55 81.98 90.08 41.05 12.11 9.46
        70 11.70 10.01 17.41 17.84 75.47 90.03 19.36 11.81 10.02
        80 9.99 9.95 10.63 10.87 28.99 34.18 9.56 14.73 14.88
        90 9.85 9.98 9.30 10.29 9.97 10.04 10.41 10.22 9.98
    """,
}


def _published(granularity: str) -> Iterator[Published]:
    columns = (NONE, DROP, *TARGETED, VARIATIONAL, LASSO, GATES)
    for line in PAPER[granularity].strip().splitlines():
        cut, *numbers = line.split()
        numbers_by_column = dict(zip(columns, numbers, strict=True))
        yield Published(
            table(granularity), f"{cut} % cut", "ResNet-32, CIFAR-10", numbers_by_column
        )


EXPERIMENT = Experiment(
    name="targeted",
    title="Targeted dropout, cut without retraining (Gomez et al., 2019)",
    run=run,
    published=(*_published("weight"), *_published("unit")),
    differs="LeNet-5 in place of ResNet-32. Columns are named alpha/gamma; the paper's two headers "
    "give the last targeted column of units as .90/.75, the other order. The output layer is "
    "neither dropped nor cut; cut units keep their bias. The strengths of variational dropout, L1 "
    "and L0 are ours: the paper does not print them.",
    draw=draw,
    claims=(
        Claim(
            "at 90 % of the weights targeted dropout is 10 points above plain and above dropout",
            lambda r: _far_above("weight", 90, r),
        ),
        Claim(
            "at 50 % of the units targeted dropout is 10 points above plain and above dropout",
            lambda r: _far_above("unit", 50, r),
        ),
    ),
)
