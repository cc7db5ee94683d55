"""Batch normalisation after pruning: statistics of the network as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparseprune.criteria.statistics.batches import Data, call, length, stream
from sparseprune.errors import bad, bad_type, check_count
from sparseprune.modes import evaluating
from sparseprune.progress import progress


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, in float64, merged exactly."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """Takes in a batch [N, channels, ...] (Chan, Golub & LeVeque, 1983)."""
        flat = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = flat.shape[1], flat.mean(1)
        squares = (flat - mean[:, None]).square().sum(1)
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def recalibrate(model: nn.Module, data: Data, batches: int | None = None) -> int:
    """Sets the running mean and variance of every batch norm to those of `data`, exactly.

    Pruning shifts what a layer gives; the statistics kept from before no longer fit. One pass,
    no labels and no gradients: every layer sees each batch normalised by the batch's own
    statistics, as in training, and keeps mean and unbiased variance over all values of all
    batches, not a moving average or a mean of variances (PreciseBN: Wu & Johnson, 2021,
    arXiv:2105.07576). Ten batches of usual size are often enough.

    model: dropout and all else run in eval mode; modes are restored. Weights do not change.
    data: as for `prune`; targets are not read.
    batches: how many to read at most; all by default.
    Returns how many layers were set: those with running statistics that were called.

    Under torch.distributed each process measures its own data.
    Raises ValueError for data without a batch, and for a batch with one value per channel, which
    has no variance; TypeError for what is no batch. On an error statistics are as they were.
    """
    if not isinstance(model, nn.Module):
        raise bad_type(
            "recalibrate", "model", "a torch.nn.Module", type(model).__name__, "pass one"
        )
    if batches is not None:
        check_count("recalibrate", "batches", batches)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    found = {norm: _Moments() for norm in norms}
    if not norms:
        return 0
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    taken = islice(stream("recalibrate", data, device), batches)
    with _by_batch(model, found), torch.no_grad():
        for batch in progress(taken, "recalibrate", batches or length(data)):
            call(model, batch.inputs)
    called = {norm: moments for norm, moments in found.items() if moments.count > 1}
    for norm, moments in called.items():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.squares / (moments.count - 1))
    return len(called)


@contextmanager
def _by_batch(model: nn.Module, found: Mapping[_BatchNorm, _Moments]) -> Iterator[None]:
    """Inside, norms use each batch's statistics and their inputs are taken in; all else is eval."""
    kept = {norm: (norm.running_mean, norm.running_var) for norm in found}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        try:
            for norm, moments in found.items():
                # without running statistics a norm in eval mode takes the batch's
                norm.running_mean = norm.running_var = None
                hook = norm.register_forward_pre_hook(_taking(moments))
                stack.callback(hook.remove)
            yield
        finally:
            for norm, (mean, variance) in kept.items():
                norm.running_mean, norm.running_var = mean, variance


def _taking(moments: _Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def take(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        if x.numel() <= x.shape[1]:
            way_out = "pass larger batches"
            got = f"one of shape {tuple(x.shape)}"
            expected = "batches with more than one value per channel"
            raise bad("recalibrate", "data", expected, got, way_out)
        moments.add(x)

    return take
