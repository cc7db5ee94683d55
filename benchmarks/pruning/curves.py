"""Criterion by criterion: error against compression from one checkpoint, as ShrinkBench asks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

import sparseprune as sp
from sparseprune.prune import rank
from sparseprune.selection import prunable_weights

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import CONV, MLP, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {MLP: 0.6, CONV: 0.2}
RATIOS = (2, 4, 8, 16, 32)
PER_CLASS = 100
CRITERIA = {
    "magnitude": ("magnitude", "global"),
    "magnitude, layer by layer": ("magnitude", "local"),
    "magnitude / std (Han)": ("han", "global"),
    "gradient": ("gradient", "global"),
    "Taylor": ("taylor", "global"),
    "Taylor, by sample": ("taylor_samples", "global"),
    "Taylor, second order": ("taylor2", "global"),
    "OBD": ("obd", "global"),
    "OBD, Fisher": ("obd_fisher", "global"),
    "L-OBS": ("lobs", "local"),
    "SparseGPT": ("sparsegpt", "local"),
    "Wanda": ("wanda", "local"),
    "correlation": ("correlation", "local"),
    "SynFlow": ("synflow", "global"),
    "random": ("random", "local"),
}
"""Name -> criterion and scope; layer by layer where the paper says so."""

CUT, TUNED, SPEED = "{}, cut", "{}, fine-tuned", "{}, MACs dense / nonzero"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Every criterion cuts the same trained network, which is then fine-tuned for as long."""
    optimizer = partial(torch.optim.Adam, lr=2e-3, weight_decay=1e-3)
    data = task.sample(PER_CLASS, seed)
    for network, share in SHARES.items():
        own = task.part(share)
        model = own.build(network, seed)
        own.fit(model, seed, optimizer=optimizer)
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        for shape in (CUT, TUNED):
            yield Row(shape.format(network), "dense", "2x", own.error(model))
        for name, (criterion, scope) in CRITERIA.items():
            rule = sp.criteria.Random(seed) if criterion == "random" else criterion
            weights = prunable_weights(model)
            ranked = rank(model, weights, rule, scope, "unstructured", data, F.cross_entropy)
            for ratio in RATIOS:
                masks = ranked.prune_(model, 1 - 1 / ratio)
                at = f"{ratio}x"
                yield Row(CUT.format(network), name, at, own.error(model))
                if network == CONV:  # of linear layers it is the compression itself
                    yield Row(SPEED.format(network), name, at, _speed(model, own))
                own.part(0.3).fit(model, seed, optimizer=optimizer, masks=masks)
                yield Row(TUNED.format(network), name, at, own.error(model))
                model.load_state_dict(trained)


def _speed(model: nn.Module, task: Task) -> float:
    """MACs of the dense network / MACs of the weights that are not zero."""
    found = sp.profile(model, task.images.x_test[:1], latency=False)
    return found.macs / max(1, found.nonzero_macs)


def _better(
    shape: str, ratios: tuple[int, ...], own: str, other: str, results: Results
) -> tuple[bool, str]:
    """Whether one criterion's error is at most the other's, for both networks."""
    holds, said = True, []
    for network in SHARES:
        table = shape.format(network)
        pairs = [[results.median(table, name, f"{r}x") for name in (own, other)] for r in ratios]
        holds &= all(a <= b for a, b in pairs)
        said.append(f"{network}: " + ", ".join(f"{a:.2f} and {b:.2f}" for a, b in pairs))
    return holds, f"% error at {', '.join(f'{r}x' for r in ratios)}: {'; '.join(said)}"


def draw(results: Results, figure: Figure) -> None:
    """Fine-tuned error against compression, a line per criterion, for both networks."""
    axes = figure.subplots(1, 2)
    for axis, network in zip(axes, SHARES, strict=True):
        table = TUNED.format(network)
        for number, name in enumerate(CRITERIA):
            points = [(float(r), results.values(table, name, f"{r}x")) for r in RATIOS]
            plots.curve(axis, points, name, number)
        axis.axhline(results.median(table, "dense", "2x"), color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(RATIOS, [f"{r}x" for r in RATIOS])
        axis.set_xlabel("weights / weights left (black: dense)")
        axis.set_ylabel("test error after fine-tuning, percent")
        axis.set_title(network, fontsize=10)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)


def _published(network: str, lines: dict[str, tuple[str, str, str]]) -> list[Published]:
    """Setting -> whose it is, compression, error %."""
    return [
        Published(TUNED.format(network), setting, f"{who}, MNIST", {ratio: error})
        for setting, (who, ratio, error) in lines.items()
    ]


EXPERIMENT = Experiment(
    name="curves",
    title="Error against compression, criterion by criterion (after Blalock et al., 2020)",
    run=run,
    published=(
        *_published(
            MLP,
            {
                "magnitude": ("LWC (Han), many rounds", "12x", "1.6"),
                "magnitude, layer by layer": ("LC", "100x", "3.2"),
                "OBD": ("OBD, many rounds", "12.5x", "2.0"),
                "L-OBS": ("L-OBS, many rounds", "67x", "2.0"),
            },
        ),
        *_published(
            CONV,
            {
                "magnitude": ("LWC (Han), many rounds", "12x", "0.8"),
                "magnitude, layer by layer": ("LC", "100x", "1.1"),
                "OBD": ("OBD, many rounds", "12.5x", "2.7"),
                "L-OBS": ("L-OBS, many rounds", "100x", "2.1"),
            },
        ),
    ),
    differs="Published are single points of the same criteria, from SNIP's table (Lee et al., "
    "2019); ShrinkBench prints curves of other networks. Here each network is cut once, from one "
    "checkpoint, and fine-tuned for 30 % of its epochs. Criteria that measure see 100 training "
    "images of each class.",
    draw=draw,
    claims=(
        Claim(
            "fine-tuned, magnitude is better than random",
            partial(_better, TUNED, (4, 8, 16, 32), "magnitude", "random"),
        ),
        Claim(
            "fine-tuned, magnitude over all layers is better than layer by layer",
            partial(_better, TUNED, (8, 16, 32), "magnitude", "magnitude, layer by layer"),
        ),
        Claim(
            "not fine-tuned, L-OBS, which mends the survivors, is better than magnitude",
            partial(_better, CUT, (4, 8, 16), "L-OBS", "magnitude"),
        ),
    ),
)
