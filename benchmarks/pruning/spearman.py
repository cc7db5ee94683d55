"""Molchanov et al. (2017): how well each criterion ranks units, against the oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from sparseprune.criteria import Oracle, spearman_to_oracle, unit_scores

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import MLP, VGG, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = (
    "taylor_activation",
    "skeletonization",
    "obd_activation",
    "nisp",
    "mean_activation",
    "apoz",
    "entropy",
    "grad_cam",
    "filter_l1",
    "filter_l2",
    "fpgm",
    "similarity",
    "bn_scale",
    "random",
)
WEIGHTS = ("taylor", "taylor_samples", "obd", "obd_fisher", "lobs", "wanda", "synflow")
"""Criteria of weights, summed over the weights of a unit."""

SHARES = {MLP: 0.6, VGG: 0.3}
LAST = {MLP: "fc3", VGG: "15"}
PER_CLASS = 100
MEAN, ALL = "rho, mean of layers", "rho, all units"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Trains both networks, removes each unit in turn, and compares ranks with every criterion."""
    optimizer = partial(torch.optim.Adam, lr=2e-3, weight_decay=1e-3)
    data = task.sample(PER_CLASS, seed)
    for network, share in SHARES.items():
        model, last = task.build(network, seed), LAST[network]
        task.part(share).fit(model, seed, optimizer=optimizer)
        oracle = unit_scores(model, Oracle(absolute=True), data, F.cross_entropy, last)
        for name in (*UNITS, *WEIGHTS):
            if name == "bn_scale" and network == MLP:
                continue  # it has no batch norm
            rho = spearman_to_oracle(model, name, data, F.cross_entropy, last, oracle)
            for measure, value in ((MEAN, rho.mean), (ALL, rho.whole)):
                if not math.isnan(value):
                    yield Row(network, name, measure, value)


def _above(others: tuple[str, ...], results: Results) -> tuple[bool, str]:
    holds, said = True, []
    for network in results.networks():
        taylor = results.median(network, "taylor_activation", MEAN)
        found = {name: results.median(network, name, MEAN) for name in others}
        holds &= all(taylor > rho for rho in found.values())
        rest = ", ".join(f"{name} {rho:.2f}" for name, rho in found.items())
        said.append(f"{network}: {taylor:.2f}, {rest}")
    return holds, "; ".join(said)


def draw(results: Results, figure: Figure) -> None:
    """Bars of the mean over layers, best first."""
    networks = results.networks()
    for axis, network in zip(figure.subplots(1, len(networks)), networks, strict=True):
        order = sorted(
            results.settings(network), key=lambda name: -results.median(network, name, MEAN)
        )
        values = [results.values(network, name, MEAN) for name in order]
        plots.bars(axis, order, values, "Spearman's rho with the oracle, mean of layers")
        axis.set_title(network, fontsize=10)
        axis.tick_params(axis="y", labelsize=7)


EXPERIMENT = Experiment(
    name="spearman",
    title="Rank correlation of unit criteria with the oracle (Molchanov et al., 2017)",
    run=run,
    published=(
        Published(VGG, "taylor_activation", "VGG-16, Birds-200", {MEAN: "0.73"}),
        Published(VGG, "filter_l2", "VGG-16, Birds-200 (minimum weight)", {MEAN: "below Taylor"}),
        Published(VGG, "mean_activation", "VGG-16, Birds-200", {MEAN: "below Taylor"}),
        Published(VGG, "obd_activation", "VGG-16, Birds-200", {MEAN: "below Taylor"}),
    ),
    differs="400 (MLP) and 96 (VGG) units in place of 4,224, networks trained on the "
    "task from scratch. The oracle is the absolute change of the loss on 1,000 training images "
    "(fewer where a class has fewer than 100). Maxout is left out: it needs a maxout network.",
    draw=draw,
    claims=(
        Claim(
            "Taylor is above minimum weight and activation",
            partial(_above, ("filter_l1", "filter_l2", "mean_activation")),
        ),
        Claim("Taylor is above OBD", partial(_above, ("obd_activation", "obd"))),
    ),
)
