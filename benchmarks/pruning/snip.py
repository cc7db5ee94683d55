"""SNIP (Lee et al., 2019): pruned once, before training; beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

import sparseprune as sp
from sparseprune import Masks
from sparseprune.training.lottery import shuffled

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import CONV, MLP, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZEROS = (95, 98, 99)
SHARES = {MLP: 2.0, CONV: 0.4}
WAYS = ("SNIP", "SNIP, shuffled in layers", "random", "magnitude after training")
ERROR, KEPT = "error %", "weights kept"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Dense, then every way at every sparsity, all trained for as many epochs."""
    for network, share in SHARES.items():
        own = task.part(share)
        dense = own.build(network, seed)
        own.fit(dense, seed)
        yield Row(network, "dense", ERROR, own.error(dense))
        for zeros in ZEROS:
            for way, masks in _masks(own, network, zeros / 100, seed, dense):
                model = own.build(network, seed)
                if way.endswith("after training"):
                    model.load_state_dict(dense.state_dict())
                own.fit(model, seed, masks=masks)
                setting = f"{way}, {zeros} %"
                yield Row(network, setting, ERROR, own.error(model))
                yield Row(network, setting, "zeros %", 100 * masks.sparsity())
                yield Row(network, setting, KEPT, sum(int(m.sum()) for m in masks.values()))


def _masks(
    task: Task, network: str, sparsity: float, seed: int, dense: torch.nn.Module
) -> Iterator[tuple[str, Masks]]:
    """One for each of `WAYS`; the model that they are made on is dropped."""
    data = task.sample(10, seed)  # one balanced batch of 100 images, as in the paper
    snip = sp.prune(task.build(network, seed), sparsity, "snip", data=data, loss=F.cross_entropy)
    yield WAYS[0], snip
    yield WAYS[1], shuffled(snip, torch.Generator().manual_seed(seed))
    at_random = sp.criteria.Random(seed)
    yield WAYS[2], sp.prune(task.build(network, seed), sparsity, at_random, scope="local")
    trained = task.build(network, seed)
    trained.load_state_dict(dense.state_dict())
    yield WAYS[3], sp.prune(trained, sparsity)


def _rises(results: Results) -> tuple[bool, str]:
    holds, said = True, []
    for network in results.networks():
        dense = results.median(network, "dense", ERROR)
        rises = [results.median(network, f"SNIP, {z} %", ERROR) - dense for z in ZEROS]
        holds &= rises[0] <= 1 and rises[2] > rises[0]
        said.append(f"{network}: " + ", ".join(f"{r:+.2f}" for r in rises) + " points")
    return holds, f"against dense at {', '.join(map(str, ZEROS))} %: {'; '.join(said)}"


def _beside(other: str, fine: Callable[[float, float], bool], results: Results) -> tuple[bool, str]:
    """Whether `fine` says so of SNIP's error and the other's, at every sparsity."""
    holds, said = True, []
    for network in results.networks():
        pairs = [
            [results.median(network, f"{way}, {z} %", ERROR) for way in (WAYS[0], other)]
            for z in ZEROS
        ]
        holds &= all(fine(*pair) for pair in pairs)
        said.append(f"{network}: " + ", ".join(f"{a:.2f} and {b:.2f}" for a, b in pairs))
    return holds, f"% error at {', '.join(map(str, ZEROS))} %: {'; '.join(said)}"


def draw(results: Results, figure: Figure) -> None:
    """Error against sparsity, a line per way."""
    networks = results.networks()
    for axis, network in zip(figure.subplots(1, len(networks)), networks, strict=True):
        for number, way in enumerate(WAYS):
            points = [(float(z), results.values(network, f"{way}, {z} %", ERROR)) for z in ZEROS]
            plots.curve(axis, points, way, number)
        dense = results.median(network, "dense", ERROR)
        axis.axhline(dense, color="black", linewidth=1, linestyle="--", label="dense")
        axis.set_yscale("log")
        axis.set_xlabel("zeros, percent of the weights")
        axis.set_ylabel("test error, percent")
        axis.set_title(network, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)


def _table(network: str, of: str, lines: dict[str, tuple[str, str]]) -> list[Published]:
    """Method -> (zeros %, error %)."""
    return [
        Published(network, setting, of, {ERROR: error, "zeros %": zeros})
        for setting, (zeros, error) in lines.items()
    ]


EXPERIMENT = Experiment(
    name="snip",
    title="SNIP, pruning before training (Lee et al., 2019)",
    run=run,
    published=(
        *_table(
            MLP,
            "MNIST",
            {
                "dense": ("0", "1.7"),
                "SNIP, 95 %": ("95.0", "1.6"),
                "SNIP, 98 %": ("98.0", "2.4"),
                "LWC (Han)": ("91.7", "1.6"),
                "DNS": ("98.2", "2.0"),
                "LC": ("99.0", "3.2"),
                "SWS": ("95.6", "1.9"),
                "SVD": ("98.5", "1.9"),
                "OBD": ("92.0", "2.0"),
                "L-OBS": ("98.5", "2.0"),
            },
        ),
        *_table(
            CONV,
            "LeNet-5-Caffe, MNIST",
            {
                "dense": ("0", "0.9"),
                "SNIP, 98 %": ("98.0", "0.8"),
                "SNIP, 99 %": ("99.0", "1.1"),
                "LWC (Han)": ("91.7", "0.8"),
                "DNS": ("99.1", "0.9"),
                "LC": ("99.0", "1.1"),
                "SWS": ("99.5", "1.0"),
                "SVD": ("99.6", "0.8"),
                "OBD": ("92.0", "2.7"),
                "L-OBS": ("99.0", "2.1"),
            },
        ),
    ),
    differs="On digits the networks have five (MLP) and four (LeNet-5) times fewer weights, so "
    "that the same share of zeros leaves far fewer. The controls keep as many weights: SNIP's "
    "masks shuffled in each layer, the same share of every layer at random, and magnitude after "
    "training, retrained for as many epochs again. Ours is he-initialised, as SNIP asks.",
    draw=draw,
    claims=(
        Claim("SNIP is within 1 point of dense at 95 %, and worse at 99 %", _rises),
        Claim(
            "SNIP is better than a random mask",
            partial(_beside, "random", lambda own, other: own < other),
        ),
        Claim(
            "SNIP's masks do as well shuffled in each layer, within 1 point (Frankle et al., 2021)",
            partial(_beside, WAYS[1], lambda own, other: other <= own + 1),
        ),
    ),
)
