"""RMSNorm that a forward writes out: found by what it computes, however it is written."""

from __future__ import annotations

from collections.abc import Iterator
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sparseprune.program.expressions import ELEMENTWISE, Expression, computed, spans
from sparseprune.program.moves import Probes

CASTS = ("to", "float", "type_as")
PARTS = {
    *ELEMENTWISE, *CASTS, "mean", "rsqrt", "sqrt", "reciprocal",
    torch.mean, torch.rsqrt, torch.sqrt, torch.reciprocal,
}  # fmt: skip
FEWEST, MOST = 4, 10
"""Steps between the tokens and the product with the weight."""


def norms(graph: fx.Graph, probes: Probes) -> Iterator[Expression]:
    """Every weight * x / sqrt(mean(x^2) + epsilon) over the channels of tokens x."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target not in (mul, torch.mul, "mul") or len(node.args) != 2:
            continue
        for weight, scaled in (node.args, node.args[::-1]):
            shape = probes.shape(0, weight)
            if shape is None or len(shape) != 1 or weight.op != "get_attr":  # type: ignore[union-attr]
                continue
            if (found := _found(scaled, shape[0], places, probes)) is not None:
                source, epsilon, inner = found
                options = {"normalized_shape": shape, "weight": weight, "eps": epsilon}
                yield Expression(node, F.rms_norm, source, options, inner)
                break


def _found(
    root: Any, channels: int, places: dict[fx.Node, int], probes: Probes
) -> tuple[fx.Node, float, list[fx.Node]] | None:
    """The tokens that `root` scales, epsilon, and the steps from there."""
    if not isinstance(root, fx.Node):
        return None
    for inside, source in spans(root, PARTS, MOST, places, probes, CASTS):
        shape = probes.shape(0, source)
        if len(inside) < FEWEST or shape is None or shape[-1] != channels or len(shape) < 2:
            continue
        if (epsilon := _epsilon(inside[::-1], source, channels, probes)) is not None:
            return source, epsilon, inside
    return None


def _epsilon(steps: list[fx.Node], source: fx.Node, channels: int, probes: Probes) -> float | None:
    """Of the RMSNorm that these steps compute, in float64; None where they are no such thing."""
    x = torch.randn(2, 3, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small, usual = (computed(steps, source, v, probes, CASTS) for v in (1e-4 * x, x))
    if not isinstance(small, Tensor) or not isinstance(usual, Tensor):
        return None
    if small.shape != x.shape or usual.shape != x.shape:
        return None
    squares = x.square().mean(-1, keepdim=True)
    factors = (small / (1e-4 * x)).mean(-1, keepdim=True)
    epsilon = float((factors.pow(-2) - 1e-8 * squares).mean())
    wanted = x * torch.rsqrt(squares + epsilon)
    same = torch.allclose(usual, wanted, rtol=1e-7, atol=0)
    return float(f"{epsilon:.6g}") if same and epsilon >= 0 else None
