"""Batch norm scale: how far a channel is let through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.base import Found, Run, Statistic
from sparseprune.errors import bad

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class NormScale(Statistic):
    """|gamma| of the batch norm that reads the layer's output, found by torch.fx: [units]."""

    name = "norm_scale"
    reads = 0

    def measure(self, run: Run) -> Found:
        """The largest of all uses of a tied weight."""
        norms = following_norms(run)
        missing = [
            name for name, layer in run.layers.items() if not any(m in norms for m in layer.modules)
        ]
        if missing:
            expected = "layers that a batch norm with weights follows"
            way_out = "add them to ignore"
            raise bad(
                run.operation, "the model", f"made of {expected}", ", ".join(missing), way_out
            )
        found = {}
        for name, layer in run.layers.items():
            scales = [norms[m].weight for m in layer.modules if m in norms]
            found[name] = torch.stack([scale.detach().abs() for scale in scales]).amax(0)
        return found


def following_norms(run: Run) -> dict[nn.Module, nn.BatchNorm2d]:
    """Layer -> the batch norm with weights called on its output; ValueError if untraceable."""
    try:
        graph = fx.Tracer().trace(run.model)
    except Exception as error:  # whatever the model's own code raises on a proxy
        got, way_out = f"one that raises {error}", "use 'filter_l1', or a criterion that reads data"
        raise bad(run.operation, "the model", "traceable by torch.fx", got, way_out) from error
    modules = dict(run.model.named_modules())
    found: dict[nn.Module, Any] = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], NORMS):
            continue
        norm, source = modules[str(node.target)], node.args[0]
        if norm.weight is not None and isinstance(source, fx.Node) and source.op == "call_module":
            found[modules[str(source.target)]] = norm
    return found


@measured(NormScale, granularity="unit")
def bn_scale(weight: Tensor, stats: Stats) -> Tensor:
    """|gamma_c| of the batch norm behind the layer. Higher is kept.

    (Liu et al., 2017, Network Slimming, arXiv:1708.06519.) Means most after training with an L1
    penalty on gamma. A channel with gamma = 0 still passes its constant beta on. [units].
    No data. Raises ValueError naming the layers without a batch norm, and for a model that
    torch.fx cannot trace.
    """
    return stats["norm_scale"]
