"""Lottery tickets (Frankle & Carbin, 2019): rewound against re-initialised and other controls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sparseprune.training.lottery import Ticket, Trial, inverted, lottery, shuffled

from . import plots
from .experiment import Claim, Experiment, Published, Results, Row
from .training import BATCH, MLP, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.4
ROUNDS = 18
RATE = 0.2
SHOWN = (0, 3, 5, 7, 9, 11, 13, 15, 17, 18)
"""Rounds in the table, with controls."""

EARLY = 0.1
"""Share of the training after which networks are compared for the first time."""

REWIND = 0.05
"""Share of the training to which the second curve goes back."""

END, SOON = f"{MLP}, error % at the end", f"{MLP}, error % after a tenth of the training"
TICKET, LATE = "ticket", "rewound to 5 % of the training"
RANDOM, SHUFFLED, INVERTED = "re-initialised", "masks shuffled in layers", "masks inverted"


def run(task: Task, seed: int) -> Iterator[Row]:
    """Rewinding to the start, with controls; then rewinding to a later step."""
    own = task.part(SHARE)
    for ticket in _tickets(own, seed, 0):
        if ticket.round in SHOWN:
            yield from _rows(ticket, TICKET, ticket.metrics)
            yield from _controls(own, seed, ticket)
    for ticket in _tickets(own, seed, round(REWIND * own.steps)):
        if ticket.round in SHOWN:
            yield from _rows(ticket, LATE, ticket.metrics)


def _tickets(task: Task, seed: int, rewind_to: int) -> Iterator[Ticket]:
    build, train = partial(_build, task, seed), partial(_train, task, seed)
    return lottery(build, train, task.steps, ROUNDS, rewind_to, RATE, "local", output="fc3")


def _build(task: Task, seed: int) -> Trial:
    """The paper's optimizer for this network."""
    model = task.build(MLP, seed)
    return Trial(model, torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=True))


def _train(task: Task, seed: int, trial: Trial, begin: int, end: int) -> dict[str, float]:
    """Steps begin, ..., end - 1, the batches of a step always the same; errors on the way."""
    images, errors = task.images, {}
    per_epoch = task.steps // task.epochs
    trial.model.train()
    for step in range(begin, end):
        if step == round(EARLY * task.steps):
            errors[SOON] = task.error(trial.model)
            trial.model.train()
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == begin:
            order = torch.Generator().manual_seed(1000 * seed + epoch)
            batches = torch.randperm(len(images.x_train), generator=order).split(BATCH)
        rows = batches[place].to(task.device)
        trial.optimizer.zero_grad()
        loss = F.cross_entropy(trial.model(images.x_train[rows]), images.y_train[rows])
        torch.autograd.backward(loss)
        trial.optimizer.step()
    return {**errors, END: task.error(trial.model)}


def _controls(task: Task, seed: int, ticket: Ticket) -> Iterator[Row]:
    if not ticket.round:
        return
    again = task.build(MLP, 1000 + seed)
    yield from _rows(ticket, RANDOM, ticket.train(start=again))
    order = torch.Generator().manual_seed(seed)
    yield from _rows(ticket, SHUFFLED, ticket.train(shuffled(ticket.masks, order)))
    yield from _rows(ticket, INVERTED, ticket.train(inverted(ticket.masks, ticket.scores)))


def _rows(ticket: Ticket, measure: str, metrics: Any) -> Iterator[Row]:
    for network, error in metrics.items():
        yield Row(network, _setting(ticket.round), measure, error)


def _setting(round_: int) -> str:
    return f"{100 * (1 - RATE) ** round_:.1f} % left"


def _beats(network: str, other: str, results: Results) -> tuple[bool, str]:
    """At every shown level of at most a fifth of the weights."""
    low = [r for r in SHOWN if (1 - RATE) ** r <= 0.21]
    pairs = [[results.median(network, _setting(r), m) for m in (TICKET, other)] for r in low]
    said = ", ".join(
        f"{_setting(r)}: {own:.2f} and {rest:.2f}"
        for r, (own, rest) in zip(low, pairs, strict=True)
    )
    return all(own < rest for own, rest in pairs), f"% error: {said}"


def _as_dense(results: Results) -> tuple[bool, str]:
    dense, sparse = (results.median(END, _setting(r), TICKET) for r in (0, 7))
    return sparse <= dense + 0.3, f"{dense:.2f} % error dense, {sparse:.2f} % of the ticket"


def draw(results: Results, figure: Figure) -> None:
    """Error against the weights left, at the end and early."""
    for axis, network in zip(figure.subplots(1, 2), (END, SOON), strict=True):
        plots.by_setting(axis, results, network, lambda s: float(s.split()[0]))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set_xlabel("weights left, percent")
        axis.set_ylabel("test error, percent")
    axis.legend(fontsize=8)


EXPERIMENT = Experiment(
    name="lottery",
    title="Lottery tickets (Frankle & Carbin, 2019)",
    run=run,
    published=(
        Published(END, _setting(7), "MNIST, in words", {TICKET: "above dense", RANDOM: "worse"}),
        Published(SOON, _setting(7), "MNIST, in words", {TICKET: "faster", RANDOM: "slower"}),
    ),
    differs="The papers print curves, no tables; what they say of LeNet-300-100 stands as words. "
    f"20 % of the survivors go in each of {ROUNDS} rounds, layer by layer, of the output layer "
    "half as many, as in the paper. On digits the network is five times smaller, so that the same "
    "share leaves fewer weights. A constant learning rate, no early stopping.",
    draw=draw,
    claims=(
        Claim("the ticket of 21 % of the weights is within 0.3 points of dense", _as_dense),
        Claim(
            "tickets beat re-initialisation with a fifth of the weights or less",
            partial(_beats, END, RANDOM),
        ),
        Claim(
            "tickets learn faster than re-initialised networks with a fifth or less",
            partial(_beats, SOON, RANDOM),
        ),
        Claim(
            "tickets beat shuffled masks with a fifth of the weights or less",
            partial(_beats, END, SHUFFLED),
        ),
    ),
)
