"""SynFlow: the share of a synthetic flow that runs through a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.base import Found, Run, Statistic
from sparseprune.criteria.statistics.batches import call
from sparseprune.criteria.statistics.positive import Positive
from sparseprune.errors import bad


class SynapticFlow(Statistic):
    """|w| * dR/d|w|, R = sum of what the positive network makes of an input of ones. float64."""

    name = "synaptic_flow"

    def measure(self, run: Run) -> Found:
        """One forward and backward pass of one sample."""
        batch = next(run.batches())
        inputs = batch.inputs
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            way_out = "SynFlow needs a network that reads one float tensor"
            raise bad(run.operation, "data", "batches of float tensors", "another input", way_out)
        ones = torch.ones_like(inputs[:1], dtype=torch.float64)
        positive = Positive(run, mean_pool=False)
        with torch.enable_grad(), positive:
            flow = call(run.model, ones).sum()
        sizes = list(positive.sizes.values())
        slopes = torch.autograd.grad(flow, sizes, allow_unused=True, materialize_grads=True)
        flows = (size.detach() * slope for size, slope in zip(sizes, slopes, strict=True))
        return dict(zip(positive.sizes, flows, strict=True))


@measured(SynapticFlow)
def synflow(weight: Tensor, stats: Stats) -> Tensor:
    """w * dR/dw, R = 1^T (prod_l |W_l|) 1. Higher is kept.

    R is the output of the positive network (|W|, no biases, no nonlinearities, batch norm without
    its shift; see `Positive`) for an input of ones: what flows into a hidden unit flows out of it.
    No data are used but the shape of the first batch; no loss. Sums run in float64.
    (Tanaka et al., 2020, arXiv:2006.05467.)

    The paper prunes in 100 rounds, which is what keeps layers from collapsing:
    `for s in schedules.iterative(0.99, 100): prune(model, s, "synflow", data=batches)`.
    Raises ValueError for a model with other functions, such as attention.
    """
    return stats["synaptic_flow"]
