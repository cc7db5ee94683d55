"""Operations that change a tensor in place: who must run before them, and who after."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from sparseprune.nn import SparseConv, SparseLinear

INPLACE_OPERATORS = {
    operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.setitem,
    operator.imatmul, operator.ilshift, operator.irshift,
}  # fmt: skip
NAMED_LIKE_KEYWORDS = {operator.and_, operator.or_, operator.not_}
"""Their names end as those of functions that write into their operand."""
FRESH = (
    SparseLinear, SparseConv, nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LayerNorm,
    nn.Embedding,
)  # fmt: skip
"""Layers whose output is memory of its own."""
FRESH_FUNCTIONS = {operator.add, operator.mul, operator.sub, torch.add, torch.mul, torch.cat}


def changes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node writes into its first operand."""
    if node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return True
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    named = name.endswith("_") and node.target not in NAMED_LIKE_KEYWORDS
    return node.target in INPLACE_OPERATORS or named or _asked(node)


def _asked(node: fx.Node) -> bool:
    """Whether a function was given inplace=True by position."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # compiled functions, which have no such argument
        return False
    return bool(bound.arguments.get("inplace"))


def _fresh(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, FRESH)
    return node.op == "call_function" and node.target in FRESH_FUNCTIONS


def same_memory(
    graph: fx.Graph, modules: dict[str, nn.Module]
) -> Callable[[fx.Node], set[fx.Node]]:
    """What may share memory with a node, itself included."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        group = {node}
        if not _fresh(node, modules) or changes(node, modules):
            for source in node.all_input_nodes:
                if source.type not in (int, float):  # a number is no memory
                    group |= groups[source]
        for member in group:
            groups[member] = group
    return groups.__getitem__


def order(
    graph: fx.Graph, modules: dict[str, nn.Module], may: Callable[[fx.Node], bool]
) -> tuple[dict[fx.Node, set[fx.Node]], set[fx.Node]]:
    """What must run before each node, and the nodes that must stay as they are.

    A change in place is as good as a new value if nobody looks at the memory again except through
    it. Any other keeps all who share or read that memory, and their order, as they are.

    Args:
        may: whether a node could be lowered at all.
    """
    before = {node: set(node.all_input_nodes) for node in graph.nodes}
    place = {node: i for i, node in enumerate(graph.nodes)}
    share = same_memory(graph, modules)
    stay: set[fx.Node] = set()
    for node in graph.nodes:
        if not changes(node, modules):
            continue
        earlier = {m for m in share(node) if place[m] < place[node]}
        given = any(m.op in ("placeholder", "get_attr") for m in earlier)
        seen_later = any(place[user] > place[node] for m in earlier for user in m.users)
        if may(node) and not given and not seen_later:
            continue
        group = share(node)
        stay |= {node} | {m for m in group if not _fresh(m, modules)}
        for other in group | {user for m in group for user in m.users}:
            if place[other] < place[node]:
                before[node].add(other)
            elif other is not node:
                before[other].add(node)
    return before, stay
