"""Sparse variational dropout (Molchanov et al., 2017): how far networks shrink by noise alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

import sparseprune as sp
from sparseprune.schedules import iterative
from sparseprune.training.variational import VariationalDropout

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import CONV, MLP, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {MLP: 1.0, CONV: 0.3}
ROUNDS = 5
VD, HAN = "sparse VD", "magnitude, as many zeros"
ERROR, RATIO = "error %", "W / W nonzero"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Trained, then twice as long with noise; and magnitude pruning with as many epochs."""
    for network, share in SHARES.items():
        own = task.part(share)
        model = own.build(network, seed)
        own.fit(model, seed)
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        yield Row(network, "dense", ERROR, own.error(model))
        yield Row(network, "dense", RATIO, 1.0)

        noisy = own.part(2)
        # log sigma^2 has far to go, in few steps: it learns five times as fast as the weights.
        method = VariationalDropout(len(own.images.x_train), warmup=(0, noisy.steps // 2), lr=1e-2)
        noisy.fit(model, seed, methods=[method])
        masks = sp.Masks.from_model(model)
        yield from _state(own, network, VD, model, masks)

        model.load_state_dict(trained)
        for sparsity in iterative(masks.sparsity(), ROUNDS):
            cut = sp.prune(model, sparsity)
            own.part(2 / ROUNDS).fit(model, seed, masks=cut)
        yield from _state(own, network, HAN, model, cut)


def _state(
    task: Task, network: str, setting: str, model: nn.Module, masks: sp.Masks
) -> Iterator[Row]:
    yield Row(network, setting, ERROR, task.error(model))
    yield Row(network, setting, RATIO, masks.compression())
    for name, mask in masks.items():
        zeros = 100 * (1 - float(mask.float().mean()))
        yield Row(network, setting, f"zeros {name.removesuffix('.weight')} %", zeros)


def _compresses(results: Results) -> tuple[bool, str]:
    holds, said = True, []
    for network in results.networks():
        ratio = results.median(network, VD, RATIO)
        before, after = (results.median(network, s, ERROR) for s in ("dense", VD))
        holds &= ratio >= 30
        said.append(f"{network}: {ratio:.0f}x, error {before:.2f} to {after:.2f} %")
    return holds, "; ".join(said)


def _beats_magnitude(results: Results) -> tuple[bool, str]:
    pairs = {n: [results.median(n, s, ERROR) for s in (VD, HAN)] for n in results.networks()}
    said = "; ".join(f"{n}: {vd:.2f} and {han:.2f} % error" for n, (vd, han) in pairs.items())
    return all(vd < han for vd, han in pairs.values()), said


def draw(results: Results, figure: Figure) -> None:
    """Compression and error of both networks."""
    left, right = figure.subplots(1, 2)
    networks = results.networks()
    ratios = [results.values(network, VD, RATIO) for network in networks]
    plots.bars(left, networks, ratios, "W / W nonzero of sparse VD")
    names = [(network, setting) for network in networks for setting in ("dense", VD, HAN)]
    errors = [results.values(*name, ERROR) for name in names]
    plots.bars(right, ["\n".join(name) for name in names], errors, "test error, percent")


def _published(network: str, of: str, layers: str, lines: str) -> Iterator[Published]:
    """Lines of: setting | error % | zeros per layer, or nothing | W / W nonzero."""
    for line in lines.strip().splitlines():
        setting, error, zeros, ratio = (cell.strip() for cell in line.split("|"))
        shares = dict(
            zip((f"zeros {name} %" for name in layers.split()), zeros.split(), strict=False)
        )
        yield Published(network, setting, of, {ERROR: error, RATIO: ratio, **shares})


EXPERIMENT = Experiment(
    name="variational",
    title="Sparse variational dropout (Molchanov et al., 2017)",
    run=run,
    published=(
        *_published(
            MLP,
            "MNIST",
            "fc1 fc2 fc3",
            """
            dense | 1.64 | | 1
            sparse VD | 1.92 | 98.9 97.2 62.0 | 68
            pruning (Han) | 1.59 | 92.0 91.0 74.0 | 12
            DNS | 1.99 | 98.2 98.2 94.5 | 56
            SWS | 1.94 | | 23
            """,
        ),
        *_published(
            CONV,
            "LeNet-5-Caffe, MNIST",
            "conv1 conv2 fc1 fc2",
            """
            dense | 0.80 | | 1
            sparse VD | 0.75 | 67 98 99.8 95 | 280
            pruning (Han) | 0.77 | 34 88 92.0 81 | 12
            DNS | 0.91 | 86 97 99.3 96 | 111
            SWS | 0.97 | | 200
            """,
        ),
    ),
    differs="On digits there are 48 times fewer images, and the divergence from the prior weighs "
    "1 / N: per image it presses 48 times harder, and the dense network has less to give away. "
    "Training is shorter (4,000 and 1,200 steps on digits). The control keeps as many weights.",
    draw=draw,
    claims=(
        Claim("sparse VD removes all but one in 30 weights", _compresses),
        Claim("at its sparsity it beats magnitude with as many epochs", _beats_magnitude),
    ),
)
