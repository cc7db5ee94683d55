"""Trajectory: what training did to the weights, for criteria that look at their movement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.criteria.statistics.base import Found, Run, Statistic
from sparseprune.errors import bad, bad_type
from sparseprune.selection import Ignore, prunable_weights


class Trajectory:
    """Listens to an optimizer: initial weights, and M = -sum_t w_t * dL/dw_t over its steps.

    Make it before training, pass it as `data`: `prune(model, 0.9, "movement", data=trajectory)`.
    Keeps two copies of every prunable weight. Under AMP gradients are read unscaled, as the
    optimizer sees them. `close()`, or the end of a `with`, stops listening and keeps the records.

    Raises ValueError as `prune` does for weights that are not plain parameters.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, ignore: Ignore = ()) -> None:
        self._weights = prunable_weights(model, ignore, "Trajectory")
        self.initial = {name: w.detach().clone() for name, w in self._weights.items()}
        self.movement = {
            name: torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
            for name, w in self._weights.items()
        }
        self.steps = 0
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers unscale by themselves
        for name, weight in self._weights.items():
            if weight.grad is not None:
                moved = weight.detach() * weight.grad
                self.movement[name] -= moved if scale is None else moved / scale

    def close(self) -> None:
        """Stops listening."""
        self._handle.remove()

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        raise TypeError(
            "a Trajectory holds no batches: it is data for 'movement' and 'insensitive'"
        )


class _Recorded(Statistic):
    """A record of the trajectory given as data."""

    reads = 0

    def measure(self, run: Run) -> Found:
        """Weight name -> record."""
        if not isinstance(run.data, Trajectory):
            way_out = "make sparseprune.criteria.Trajectory(model, optimizer) before training"
            got = type(run.data).__name__
            raise bad_type(run.operation, "data", "a Trajectory of the training", got, way_out)
        records = self.of(run.data)
        for name, weight in run.weights.items():
            if name not in records or records[name].shape != weight.shape:
                way_out = "record the training of this very model"
                raise bad(
                    run.operation, "data", "a Trajectory of this model", f"no {name!r}", way_out
                )
        return {name: records[name].to(layer.weight.device) for name, layer in run.layers.items()}

    def of(self, trajectory: Trajectory) -> Found:
        """The record itself."""
        raise NotImplementedError


class Movement(_Recorded):
    """-sum_t w_t * dL/dw_t. Shape of the weight."""

    name = "movement"

    def of(self, trajectory: Trajectory) -> Found:
        """Recorded step by step."""
        if not trajectory.steps:
            way_out = "train between making the Trajectory and pruning"
            raise bad("movement", "data", "a Trajectory with steps", "none", way_out)
        return trajectory.movement


class Initial(_Recorded):
    """The weight before training. Shape of the weight."""

    name = "initial"

    def of(self, trajectory: Trajectory) -> Found:
        """Copied at the start."""
        return {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in trajectory.initial.items()
        }


def reset_insensitive(model: nn.Module, trajectory: Trajectory, share: float) -> dict[str, Tensor]:
    """w <- w_0 where |w - w_0| is among the lowest `share` of all weights; returns what was kept.

    The weights that training hardly moved go back to their initial values, in place (to zero
    instead: `prune(model, share, "insensitive", data=trajectory)`). share in [0, 1); True in the
    returned masks means not reset. Ties go by position. Raises as `prune` does.
    """
    from sparseprune.criteria.scoring import weight_scores
    from sparseprune.errors import check_sparsity
    from sparseprune.patterns.ranking import lowest

    part = check_sparsity("reset_insensitive", "share", share)
    scores = weight_scores(model, "insensitive", trajectory, operation="reset_insensitive")
    budget = round(part * sum(score.numel() for score in scores.values()))
    reset = dict(zip(scores, lowest(list(scores.values()), budget), strict=True))
    with torch.no_grad():
        for name, chosen in reset.items():
            weight = model.get_parameter(name)
            weight.copy_(torch.where(chosen, trajectory.initial[name].to(weight.device), weight))
    return {name: ~chosen for name, chosen in reset.items()}
