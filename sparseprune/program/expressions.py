"""Activations that a forward writes out: found by what they compute, however they are written."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sparseprune.program.moves import Probes

_METHODS = ("add", "sub", "mul", "div", "pow", "neg", "exp", "log", "log1p", "erf", "tanh",
            "sigmoid", "square")  # fmt: skip
_OPERATORS = ("add", "sub", "mul", "truediv", "pow", "neg")
ELEMENTWISE = {
    *_METHODS,
    *(getattr(torch, name) for name in _METHODS),
    *(getattr(operator, name) for name in _OPERATORS),
    F.tanh, F.sigmoid, F.softplus,
}  # fmt: skip
"""Functions and methods of numbers, one by one."""
FEWEST, MOST = 3, 16
"""Steps of an activation that is written out."""
TOLERANCE = 1e-6
KNOWN: tuple[tuple[Any, dict[str, Any]], ...] = (
    (F.gelu, {"approximate": "tanh"}), (F.gelu, {}), (F.silu, {}), (F.hardswish, {}), (F.mish, {}),
)  # fmt: skip
"""Functions, and their options."""


@dataclass(frozen=True)
class Expression:
    """`node` is `function(source, **options)`; `inner`: what is written in between."""

    node: fx.Node
    function: Any
    source: fx.Node
    options: dict[str, Any]
    inner: list[fx.Node]


def expressions(graph: fx.Graph, probes: Probes) -> Iterator[Expression]:
    """Every activation of ``KNOWN`` that is written out, the largest first."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    taken: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in taken or node.target not in ELEMENTWISE or probes.shape(0, node) is None:
            continue
        if (found := _found(node, places, probes)) is not None:
            taken.update(found.inner)
            yield found


def _found(root: fx.Node, places: dict[fx.Node, int], probes: Probes) -> Expression | None:
    for inside, source in spans(root, ELEMENTWISE, MOST, places, probes):
        if len(inside) < FEWEST:
            continue
        if (known := _known(inside[::-1], source, probes)) is not None:
            return Expression(root, known[0], source, known[1], inside[1:])
    return None


def spans(
    root: fx.Node,
    allowed: Container[Any],
    most: int,
    places: dict[fx.Node, int],
    probes: Probes,
    skipped: Container[Any] = (),
) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """Steps taken from the last one back, whenever they all read one value: the steps, that value.

    skipped: targets of steps of which the first argument alone counts.
    """
    inside: list[fx.Node] = []
    open_ = {root}
    while open_ and len(inside) < most:
        last = max(open_, key=places.__getitem__)
        if last.target not in allowed:
            return
        inside.append(last)
        read = last.all_input_nodes[: 1 if last.target in skipped else None]
        open_ = open_ - {last} | {a for a in read if probes.number(a) is None}
        if len(open_) == 1:
            yield list(inside), next(iter(open_))


def computed(
    steps: list[fx.Node], source: fx.Node, x: Tensor, probes: Probes, skipped: Container[Any] = ()
) -> Any:
    """What the last of these steps is for this source; None where one fails.

    skipped: targets of steps that give what they take.
    """
    env: dict[fx.Node, Any] = {source: x}

    def value(node: fx.Node) -> Any:
        return env[node] if node in env else probes.number(node)

    for node in steps:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        try:
            if node.target in skipped:
                env[node] = args[0]
            elif node.op == "call_method":
                env[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, AttributeError):
            return None
    return env[steps[-1]]


def _known(steps: list[fx.Node], source: fx.Node, probes: Probes) -> Any:
    """The function that these steps compute, in float64, if it is one of ``KNOWN``."""
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    y = computed(steps, source, x, probes)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    same = (k for k in KNOWN if torch.allclose(k[0](x, **k[1]), y, rtol=0, atol=TOLERANCE))
    return next(same, None)
