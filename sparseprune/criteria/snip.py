"""SNIP: the sensitivity of the loss to each connection, before training."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.base import Found, Run
from sparseprune.criteria.statistics.gradients import Gradient


class ConnectionSensitivity(Gradient):
    """|g_j| / sum_k |g_k|, g_j = dL(c * w) / dc_j at c = 1 = w_j dL/dw_j; k over all weights."""

    name = "connection_sensitivity"

    def measure(self, run: Run) -> Found:
        """From the mean gradient."""
        found = super().measure(run)
        raw = {
            name: (layer.weight.detach() * found[name]).abs() for name, layer in run.layers.items()
        }
        total = sum(float(value.sum(dtype=value.dtype)) for value in raw.values())
        return {name: value / (total or 1.0) for name, value in raw.items()}


@measured(ConnectionSensitivity)
def snip(weight: Tensor, stats: Stats) -> Tensor:
    """|g_j| / sum_k |g_k|, g_j = dL(c * w) / dc_j at c = 1, k over all weights. Higher is kept.

    Meant for a network at (variance-scaling) initialisation, before any training, with one batch
    that holds all classes, scope "global". (Lee et al., 2019, arXiv:1810.02340.)
    Needs data and a loss; the score has the weight's shape, at least float32.
    """
    return stats["connection_sensitivity"]
