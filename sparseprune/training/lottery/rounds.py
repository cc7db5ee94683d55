"""Lottery tickets: train, prune some of the survivors, rewind the rest, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.criteria import Criterion
from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad, check_count, check_sparsity
from sparseprune.masks import Masks
from sparseprune.prune import rank, targets
from sparseprune.selection import Ignore
from sparseprune.training.lottery.rewind import Rewind, Stateful


class Trial(NamedTuple):
    """What one training is made of; `others` as for `Rewind`."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Stateful | None = None
    others: tuple[Stateful | torch.Generator, ...] = ()


Train = Callable[[Trial, int, int], Any]
"""(trial, begin, end) -> metrics: makes the steps begin, ..., end - 1 of the training."""


@dataclass(frozen=True)
class Ticket:
    """One round: masks, and what training from the rewound weights under them gave.

    round: 0 is the dense network.
    masks: of this round; the round before chose them.
    metrics: what `train` returned.
    scores: weight name -> what the masks were chosen by, higher = kept; empty in round 0.
    """

    round: int
    masks: Masks
    metrics: Any
    scores: Mapping[str, Tensor]
    _train: Callable[[Masks, nn.Module | None], Any] = field(repr=False)

    def train(self, masks: Masks | None = None, start: nn.Module | None = None) -> Any:
        """A control: trains again from the rewound step, and returns the metrics.

        masks: instead of the ticket's, e.g. `shuffled(ticket.masks, generator)`.
        start: a model like that of the trial; its parameters and buffers instead of the rewound
            ones, and a fresh optimizer state: re-initialisation, if it is another draw.

        Everything else is as in the ticket's own training, so without arguments it is repeated.
        The rounds that follow do not notice.
        """
        return self._train(self.masks if masks is None else masks, start)


def lottery(
    build: Callable[[], Trial],
    train: Train,
    steps: int,
    rounds: int,
    rewind_to: int = 0,
    rate: float = 0.2,
    scope: str = "global",
    output: str | None = None,
    criterion: str | Criterion = "magnitude",
    ignore: Ignore = (),
) -> Iterator[Ticket]:
    """Iterative magnitude pruning with rewinding; gives a `Ticket` after every training.

    After r rounds 1 - (1 - rate)^r of the weights are gone. In every round those left go back to
    their values at step `rewind_to`, with optimizer, learning rate, buffers and random states (see
    `Rewind`), and are trained to the end with the others at exact zero. (Frankle & Carbin, 2019,
    arXiv:1803.03635: rewind_to=0; Frankle et al., 2020, arXiv:1912.05671.)

    ::

        def build(seed=0):
            torch.manual_seed(seed)
            model = ...
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            return Trial(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 100))

        def train(trial, begin, end):
            for step in range(begin, end):
                x, y = batch(step)  # the data order follows from the step
                ...
            return accuracy(trial.model)

        for ticket in lottery(build, train, steps=1000, rounds=10, rewind_to=50):
            print(ticket.masks.sparsity(), ticket.metrics)
            print(ticket.train(shuffled(ticket.masks, generator)))
            print(ticket.train(start=build(seed=1).model))

    build: the network to train, its optimizer and what else is rewound. Called once.
    steps: of one whole training. rounds: prunings, so there are rounds + 1 tickets.
    rate: share of the survivors to prune in a round, in [0, 1).
    scope: "global" or "local", as for `prune`.
    output: name of the output layer, which is pruned by itself at half the rate, as in the paper's
        networks for MNIST; None treats it like the others.
    criterion, ignore: as for `prune`, for criteria that need no data; "random" prunes at random.

    While the rounds run, the model holds the weights of the last training. Raises ValueError or
    TypeError before the first one.
    """
    check_count("lottery", "steps", steps)
    check_count("lottery", "rounds", rounds)
    check_count("lottery", "rewind_to", rewind_to, least=0)
    rate = check_sparsity("lottery", "rate", rate)
    if rewind_to >= steps:
        way_out = "pass an earlier step"
        raise bad("lottery", "rewind_to", f"below steps = {steps}", rewind_to, way_out)
    trial = Trial(*build())
    run = _Lottery(trial, train, steps, rate, scope, output, criterion, ignore)
    run.cut(0)  # an error in scope, criterion, output or ignore now rather than after a training
    return run.tickets(rounds, rewind_to)


@dataclass
class _Lottery:
    trial: Trial
    train: Train
    steps: int
    rate: float
    scope: str
    output: str | None
    criterion: str | Criterion
    ignore: Ignore

    def tickets(self, rounds: int, rewind_to: int) -> Iterator[Ticket]:
        masks = self.cut(0)[0]
        scores: dict[str, Tensor] = {}
        self.train(self.trial, 0, rewind_to)
        trial = self.trial
        rewind = Rewind(trial.model, trial.optimizer, trial.scheduler, *trial.others)

        def control(masks: Masks, start: nn.Module | None) -> Any:
            return self.trained(rewind, rewind_to, masks, start)

        for level in range(rounds + 1):
            metrics = self.trained(rewind, rewind_to, masks)
            following = self.cut(level + 1) if level < rounds else (masks, scores)
            yield Ticket(level, masks, metrics, scores, control)
            masks, scores = following

    def trained(
        self, rewind: Rewind, begin: int, masks: Masks, start: nn.Module | None = None
    ) -> Any:
        """The metrics of one training from the rewound step, under these masks."""
        model, optimizer = unwrapped(self.trial.model), self.trial.optimizer
        rewind.restore_()
        if start is not None:
            model.load_state_dict(unwrapped(start).state_dict())
            optimizer.state.clear()
        with Masks(masks).attach(model, optimizer):  # a copy: the caller's may be attached
            return self.train(self.trial, begin, self.steps)

    def cut(self, level: int) -> tuple[Masks, dict[str, Tensor]]:
        """The masks after `level` rounds, from the weights as they are; and their scores."""
        model = unwrapped(self.trial.model)
        _, weights = targets(model, 0.0, self.ignore, "lottery")
        last = {} if self.output is None else self._last(model)
        rest = {name: weight for name, weight in weights.items() if name not in last}
        masks: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        for part, rate in ((rest, self.rate), (last, self.rate / 2)):
            if part:
                rule = (self.criterion, self.scope, "unstructured")
                ranked = rank(model, part, *rule, operation="lottery")
                masks |= ranked.masks(1 - (1 - rate) ** level)
                scores |= ranked.scored.scores
        return Masks({name: masks[name] for name in weights}), scores

    def _last(self, model: nn.Module) -> dict[str, nn.Parameter]:
        assert self.output is not None
        return targets(model, {self.output: 0.0}, self.ignore, "lottery: output")[1]
