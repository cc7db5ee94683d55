"""LOBSTER (Tartaglione et al., 2020): decay of what the loss does not feel, against magnitude."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.schedules import iterative
from sparseprune.training import Lobster, Plateau

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import CONV, MLP, Task, sgd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {MLP: 3.0, CONV: 0.8}
HELD_OUT = 6
"""One training image in so many tells LOBSTER when to cut, and how much."""

STRENGTH = 1e-3
ROUNDS = 5
LOBSTER, ALONE, MAGNITUDE = "LOBSTER", "plateau cuts without decay", "magnitude, as many zeros"
ERROR, ZEROS, RATIO = "error %", "zeros %", "W / W nonzero"


def run(task: Task, seed: int) -> Iterator[Row]:
    """All from scratch and for as many epochs; magnitude gets LOBSTER's share of zeros."""
    for network, share in SHARES.items():
        own, held_out = _split(task.part(share))
        dense = own.build(network, seed)
        own.fit(dense, seed, optimizer=sgd(network))
        yield Row(network, "dense", ERROR, own.error(dense))
        reached = 0.0
        for setting, strength in ((LOBSTER, STRENGTH), (ALONE, 0.0)):
            model = own.build(network, seed)
            _with_cuts(own, network, model, held_out, strength, seed)
            masks = sp.Masks.from_model(model)
            reached = reached or masks.sparsity()
            yield from _state(own, network, setting, model, masks)
        model = own.build(network, seed)
        masks = _magnitude(own, network, model, reached, seed)
        yield from _state(own, network, MAGNITUDE, model, masks)


def _split(task: Task) -> tuple[Task, tuple[Tensor, Tensor]]:
    """The task without every sixth training image, and those."""
    x, y = task.images.x_train, task.images.y_train
    out = torch.arange(len(y), device=y.device) % HELD_OUT == 0
    images = replace(task.images, x_train=x[~out], y_train=y[~out])
    return replace(task, images=images), (x[out], y[out])


def _with_cuts(
    task: Task,
    network: str,
    model: nn.Module,
    held_out: tuple[Tensor, Tensor],
    strength: float,
    seed: int,
) -> None:
    """Trains in place; on every plateau of the held-out loss, what it can spare is cut."""

    @torch.no_grad()
    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model.eval()(held_out[0]), held_out[1])

    plateau, decay = Plateau(loss, pwe=5, twt=0.1), Lobster(strength)
    epochs = itertools.count(1)

    def after_epoch() -> None:
        # The decay falls as the learning rate does: else nothing makes good for it in the end.
        decay.strength = strength * (1 + math.cos(math.pi * next(epochs) / task.epochs)) / 2
        if not plateau.done:
            plateau.step(loss(model))

    methods = [decay, plateau]
    task.fit(model, seed, optimizer=sgd(network), methods=methods, after_epoch=after_epoch)


def _magnitude(task: Task, network: str, model: nn.Module, sparsity: float, seed: int) -> sp.Masks:
    """Half of the epochs dense, the rest in rounds of cutting and retraining."""
    masks = sp.Masks({})
    task.part(0.5).fit(model, seed, optimizer=sgd(network))
    for level in iterative(sparsity, ROUNDS):
        masks = sp.prune(model, level)
        task.part(0.5 / ROUNDS).fit(model, seed, optimizer=sgd(network), masks=masks)
    return masks


def _state(
    task: Task, network: str, setting: str, model: nn.Module, masks: sp.Masks
) -> Iterator[Row]:
    yield Row(network, setting, ERROR, task.error(model))
    yield Row(network, setting, ZEROS, 100 * masks.sparsity())
    yield Row(network, setting, RATIO, masks.compression())


def _sparse(results: Results) -> tuple[bool, str]:
    holds, said = True, []
    for network in results.networks():
        zeros = results.median(network, LOBSTER, ZEROS)
        before, after = (results.median(network, s, ERROR) for s in ("dense", LOBSTER))
        holds &= zeros >= 90 and after <= before + 1
        said.append(f"{network}: {zeros:.1f} %, error {before:.2f} to {after:.2f} %")
    return holds, "; ".join(said)


def _against(other: str, measure: str, results: Results) -> tuple[bool, str]:
    """Whether LOBSTER has the lower error, or more zeros."""
    pairs = {
        network: [results.median(network, setting, measure) for setting in (LOBSTER, other)]
        for network in results.networks()
    }
    said = "; ".join(f"{n}: {own:.2f} and {rest:.2f}" for n, (own, rest) in pairs.items())
    better = all(own < rest if measure == ERROR else own > rest for own, rest in pairs.values())
    return better, f"{measure}: {said}"


def draw(results: Results, figure: Figure) -> None:
    """Error and zeros of every way."""
    names = [(n, s) for n in results.networks() for s in results.settings(n)]
    for axis, measure in zip(figure.subplots(1, 2), (ERROR, ZEROS), strict=True):
        shown = [name for name in names if results.values(*name, measure)]
        values = [results.values(*name, measure) for name in shown]
        plots.bars(axis, ["\n".join(name) for name in shown], values, measure)


EXPERIMENT = Experiment(
    name="lobster",
    title="LOBSTER against magnitude (Tartaglione et al., 2020)",
    run=run,
    published=tuple(
        Published("larger networks", f"LOBSTER, {network}", data, {ZEROS: zeros})
        for network, data, zeros in (
            ("VGG-16", "CIFAR-10", "92.44"),
            ("ResNet-32", "CIFAR-10", "81.19"),
            ("AlexNet", "CIFAR-100", "98.90"),
        )
    ),
    differs="Published are the ratios of the ICIP 2021 comparison (structured against "
    "unstructured), whose networks are not run here. Every sixth training image is held out to "
    "find plateaus, in all ways of pruning. PWE 5 epochs, TWT 0.1 and strength 1e-3, which "
    "falls with the learning rate, are ours.",
    draw=draw,
    claims=(
        Claim("LOBSTER removes 90 % of the weights within 1 point of dense", _sparse),
        Claim(
            "at its share of zeros it has less error than magnitude in as many epochs",
            lambda r: _against(MAGNITUDE, ERROR, r),
        ),
        Claim(
            "its decay gives more zeros than the plateau's cuts alone",
            lambda r: _against(ALONE, ZEROS, r),
        ),
    ),
)
