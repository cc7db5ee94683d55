"""Plateau: cut what a stalled training can spare, pin it at zero, go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.errors import bad, bad_type, check_count
from sparseprune.masks import Masks
from sparseprune.modes import evaluating
from sparseprune.selection import Ignore
from sparseprune.training.method import Method, check_strength

Validate = Callable[[nn.Module], float | Tensor]
"""Model, in eval mode and without gradients -> its loss on the validation data."""


class Plateau(Method):
    """After `pwe` epochs without gain: w <- 0 where |w| < T, T the largest with

        L_val(T) <= (1 + twt) * L_val(best),

    found by bisection from mean |w|; then these weights stay zero and training goes on.

    (Tartaglione et al., 2020, LOBSTER, arXiv:2011.09905: plateau waiting epochs, thresholding
    worsening tolerance; the order of things as in github.com/EIDOSLAB/LOBSTER.) ::

        plateau = sp.training.Plateau(validate, pwe=20, twt=0.05).prepare(model, optimizer)
        decay = sp.training.Lobster(1e-4).prepare(model, optimizer)  # or L1, L2, Serene, ...
        while not plateau.done:
            train_one_epoch()
            plateau.step(validate(model))
        decay.finalize()
        masks = plateau.finalize()

    A gain is a new best loss (that code waits on after any loss up to 1 % above the best, too).
    On a plateau the model first returns to its best state since the last cut (weights and buffers,
    not the optimizer's). The T taken was itself validated; the search ends when the losses of its
    bracket differ by less than 5 % of the bound, or no weight lies between. L_val is taken to rise
    with T. Zeroes and pins weights, no biases, by `Masks.attach`; frozen weights stay as they are.
    `done` is True once nothing could be cut. Under torch.distributed all ranks must be given the
    same losses. Holds one more copy of the model.
    """

    def __init__(
        self, validate: Validate, pwe: int = 10, twt: float = 0.05, ignore: Ignore = ()
    ) -> None:
        """pwe: epochs, at least 1. twt: relative worsening, at least 0. ignore: as for `prune`."""
        super().__init__(ignore)
        if not callable(validate):
            expected, way_out = "a callable (model) -> loss", "pass one"
            raise bad_type("Plateau", "validate", expected, type(validate).__name__, way_out)
        check_count("Plateau", "pwe", pwe)
        self.validate, self.pwe = validate, pwe
        self.twt = check_strength("Plateau", twt, argument="twt")
        self.done = False
        self.masks = Masks({})
        self._targets: dict[str, nn.Parameter] = {}
        self._best, self._waited = math.inf, 0
        self._state: dict[str, Tensor] = {}

    def step(self, loss: float | Tensor) -> bool:
        """One epoch is over, with this validation loss. Returns whether weights were cut.

        A NaN is no gain. Raises ValueError before `prepare`, once `done`, and for a loss below 0,
        of which a relative worsening means nothing.
        """
        model, _ = self._prepared("step")
        if self.done:
            way_out = "call finalize()"
            raise bad("Plateau.step", "the method", "not done", "one that found no cut", way_out)
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if value < 0:
            way_out = "pass a loss such as cross-entropy"
            raise bad("Plateau.step", "loss", "at least 0", value, way_out)
        if value < self._best:
            self._best, self._waited = value, 0
            self._state = {n: t.detach().clone() for n, t in model.state_dict().items()}
            return False
        self._waited += 1
        if self._waited < self.pwe:
            return False
        if self._state:  # empty after losses that are all NaN
            model.load_state_dict(self._state)
        threshold = self._largest_threshold(model)
        self.done = threshold == 0
        if not self.done:
            self._cut(threshold)
            self._hold()
        self._reset()
        return not self.done

    def _reset(self) -> None:
        self._best, self._waited, self._state = math.inf, 0, {}

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._targets = self._trained(model, optimizer)
        self.done = False
        self._reset()

    def _end(self) -> Masks:
        self.masks.detach()
        return super()._end()

    def _largest_threshold(self, model: nn.Module) -> float:
        """T, or 0 if none cuts anything."""
        live = [size[size > 0] for size in (w.detach().abs() for w in self._trainable())]
        count = sum(size.numel() for size in live)
        if not count:
            return 0.0
        base = self._loss(model, 0.0)
        bound = (1 + self.twt) * base
        low, high = 0.0, max(float(size.max()) for size in live if size.numel())
        loss_low, loss_high = base, math.inf
        middle = sum(float(size.sum(dtype=torch.float64)) for size in live) / count
        while any(((size >= low) & (size < high)).any() for size in live):
            loss = self._loss(model, middle)
            if loss <= bound:
                low, loss_low = middle, loss
            else:
                high, loss_high = middle, loss
            if abs(loss_high - loss_low) < 0.05 * bound:
                break
            middle = (low + high) / 2
            if middle in (low, high):  # neighbouring numbers
                break
        return low if any((size < low).any() for size in live) else 0.0

    def _loss(self, model: nn.Module, threshold: float) -> float:
        """L_val(threshold); the model is as it was afterwards."""
        with evaluating(model), self._cut_for_now(threshold), torch.no_grad():
            return float(self.validate(model))

    @contextmanager
    def _cut_for_now(self, threshold: float) -> Iterator[None]:
        kept = [weight.detach().clone() for weight in self._trainable()]
        try:
            self._cut(threshold)
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self._trainable(), kept, strict=True):
                    weight.copy_(value)

    @torch.no_grad()
    def _cut(self, threshold: float) -> None:
        for weight in self._trainable():
            weight.masked_fill_(weight.abs() < threshold, 0)

    def _trainable(self) -> list[nn.Parameter]:
        return [weight for weight in self._targets.values() if weight.requires_grad]

    def _hold(self) -> None:
        """Pins what is zero now."""
        model, optimizer = self._prepared("step")
        self.masks.detach()
        pinned = {n: w.detach() != 0 for n, w in self._targets.items() if w.requires_grad}
        self.masks = Masks(pinned).attach(model, optimizer)
