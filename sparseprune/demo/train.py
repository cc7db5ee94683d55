"""Training, and iterative magnitude pruning with retraining as in Han et al. (2015)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.data import Digits
from sparseprune.masks import Masks
from sparseprune.prune import prune
from sparseprune.schedules import iterative

BATCH = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Round:
    """State after one round: share of zero weights, test accuracy in percent."""

    sparsity: float
    accuracy: float


@dataclass(frozen=True)
class Trial:
    """One seed: the dense network, then every round of pruning and retraining."""

    seed: int
    rounds: tuple[Round, ...]  # the first one is the dense network
    pruned: nn.Module

    @property
    def dense_accuracy(self) -> float:
        """Test accuracy in percent before pruning."""
        return self.rounds[0].accuracy

    @property
    def pruned_accuracy(self) -> float:
        """Test accuracy in percent at the last round."""
        return self.rounds[-1].accuracy


def train(
    model: nn.Module,
    data: Digits,
    epochs: int,
    *,
    masks: Masks | None = None,
    seed: int = 0,
    on_epoch: Callable[[], object] = lambda: None,
) -> None:
    """Minimises cross-entropy with Adam, L2 decay and a cosine learning rate; masks stay zero."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    order = torch.Generator().manual_seed(seed)
    with masks.attach(model, optimizer) if masks is not None else nullcontext():
        for _ in range(epochs):
            shuffled = torch.randperm(len(data.x_train), generator=order)
            for rows in torch.split(shuffled, BATCH):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(data.x_train[rows]), data.y_train[rows])
                torch.autograd.backward(loss)
                optimizer.step()
            schedule.step()
            on_epoch()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of x [N, ...] whose largest logit is the label in y [N]."""
    return 100 * float((model.eval()(x).argmax(1) == y).float().mean())


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that pruning acts on: every parameter with two dimensions or more, no biases."""
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def zero_share(model: nn.Module) -> float:
    """Share of weights that are exactly zero, biases not counted."""
    tensors = weights(model).values()
    kept = sum(int(w.count_nonzero()) for w in tensors)
    return 1 - kept / sum(w.numel() for w in tensors)


def run_trial(
    build: Callable[[], nn.Module],
    data: Digits,
    seed: int,
    *,
    epochs: int,
    rounds: int,
    round_epochs: int,
    compression: float,
    on_epoch: Callable[[], object] = lambda: None,
) -> Trial:
    """Trains, then repeats: cut the smallest weights, retrain the survivors from where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    train(model, data, epochs, seed=seed, on_epoch=on_epoch)
    states = [Round(zero_share(model), accuracy(model, data.x_test, data.y_test))]
    for number, sparsity in enumerate(iterative(1 - 1 / compression, rounds), start=1):
        masks = prune(model, sparsity, criterion="magnitude", scope="global")
        train(model, data, round_epochs, masks=masks, seed=1000 * number + seed, on_epoch=on_epoch)
        states.append(Round(zero_share(model), accuracy(model, data.x_test, data.y_test)))
    return Trial(seed, tuple(states), model.eval())
