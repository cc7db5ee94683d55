"""Rotary embeddings in a graph: found by where channels go, and written as one call.

x * cos + other * sin, where `other` holds the channels of x in another order, half of them negated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import add, mul, neg
from typing import Any

import torch
from torch import Tensor, fx

from sparseprune.program.masks import given
from sparseprune.program.moves import MOVES, Probes, back, moved_places
from sparseprune.program.steps_sequences import end_of_heads

PRODUCTS, SUMS = (mul, torch.mul, "mul"), (add, torch.add, "add")
NEGATIONS, JOINS = (neg, torch.neg, "neg"), (torch.cat, torch.concat)
MOST = 8
"""Nodes that write the other channels."""

Tables = dict[fx.Node, fx.Node]
"""Where angles come from -> as many of them as there are tokens."""


@dataclass(frozen=True)
class Turned:
    """Heads [N, heads, T, channels] that turn; `inner`: what the forward writes for it.

    cos, sin: [N or 1, T, turned] or [T, turned].
    """

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    turned: int
    pairs: bool
    inner: list[fx.Node]


def heads_of(x: Tensor, first: int, stride: int, heads: int, head: int) -> Tensor:
    """[..., heads, head] of x [..., channels], which begin at `first`, `stride` apart."""
    return x[..., first : end_of_heads(first, stride, heads, head)].unfold(-1, head, stride)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    first: int,
    stride: int,
    heads: int,
    head: int,
    pairs: bool,
) -> Tensor:
    """The heads of x [..., T, channels], which begin at `first`, `stride` apart, turned.

    cos, sin: [..., T, turned]; other channels of a head stay as they are.
    """
    x = heads_of(x, first, stride, heads, head)
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    y = turning * cos.unsqueeze(-2) + other_channels(turning, pairs) * sin.unsqueeze(-2)
    return torch.cat([y, rest], -1).flatten(-2)


def other_channels(x: Tensor, pairs: bool) -> Tensor:
    """What turns into the channels of x: (-x1, x0) of neighbours or of halves."""
    if pairs:
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    low, high = x.chunk(2, -1)
    return torch.cat([-high, low], -1)


def turned_heads(node: fx.Node, probes: Probes) -> Turned | None:
    """What a node turns, if it does that."""
    if _are([node], JOINS, 1) or _are([node], JOINS):
        return _in_part(node, probes)
    terms: Any = node.args
    if not _are([node], SUMS) or not _are(terms, PRODUCTS):
        return None
    for kept, moved in (terms, terms[::-1]):
        for x, cos in (kept.args, kept.args[::-1]):
            for other, sin in (moved.args, moved.args[::-1]):
                if (found := _turned(x, cos, other, sin, probes)) is not None:
                    return replace(found, inner=[*found.inner, kept, moved])
    return None


def _in_part(node: fx.Node, probes: Probes) -> Turned | None:
    """The first channels turned, then the others."""
    parts: Any
    parts, dim = [*node.args, node.kwargs.get("dim")][:2]
    if dim not in (-1, 3) or not isinstance(parts, (tuple, list)) or len(parts) != 2:
        return None
    inside = turned_heads(parts[0], probes) if _are(parts[:1], SUMS) else None
    if inside is None or not isinstance(parts[1], fx.Node):
        return None
    source, chain, by = back(inside.x, probes)
    rest, other_chain, other_by = back(parts[1], probes)
    while chain and other_chain and chain[0] is other_chain[0]:  # taken from one node on the way
        source = rest = chain[0]
        chain, other_chain = chain[1:], other_chain[1:]
    width = inside.turned
    if source is not rest or by != 1 or other_by != 1:
        return None
    for p in _all(probes):
        shape = probes.shape(p, source)
        if shape is None or len(shape) != 4:
            return None
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
        first = moved_places(chain, source, places, p, probes)
        second = moved_places(other_chain, rest, places, p, probes)
        if first is None or second is None or not torch.equal(first, places[..., :width]):
            return None
        if not torch.equal(second, places[..., width:]):
            return None
    inner = [*chain, *other_chain, *inside.inner, parts[0]]
    return Turned(source, inside.cos, inside.sin, width, inside.pairs, inner)


def _are(nodes: Any, targets: tuple[Any, ...], count: int = 2) -> bool:
    """Whether all are calls of these with so many arguments, and no options but a dimension."""
    return all(
        isinstance(n, fx.Node)
        and n.target in targets
        and len(n.args) == count
        and n.kwargs.keys() <= {"dim"}
        for n in nodes
    )


def _turned(x: Any, cos: Any, other: Any, sin: Any, probes: Probes) -> Turned | None:
    shape = probes.shape(0, x)
    if shape is None or len(shape) != 4 or probes.shape(0, other) != shape:
        return None
    chain = _written(other, x, probes)
    tables = [_table(t, x, probes) for t in (cos, sin)]
    if chain is None or None in tables:
        return None
    for pairs in (False, True):
        if all(_exchanges(chain, x, p, probes, pairs) for p in _all(probes)):
            (c, its), (s, more) = tables  # type: ignore[misc]
            return Turned(x, c, s, shape[3], pairs, [*chain, *its, *more])
    return None


def _written(other: fx.Node, x: fx.Node, probes: Probes) -> list[fx.Node] | None:
    """The nodes that make `other` of x, in order."""
    found, open_ = list[fx.Node](), [other]
    while open_:
        node = open_.pop(0)
        if node is x or node in found:
            continue
        if len(found) == MOST or node.target not in (*MOVES, *NEGATIONS, *JOINS, torch.stack):
            return None
        found.append(node)
        open_ += [n for n in node.all_input_nodes if n.name not in probes.numbers[0]]
    places = {node: place for place, node in enumerate(x.graph.nodes)}
    return sorted(found, key=places.__getitem__)


def _exchanges(chain: list[fx.Node], x: fx.Node, probe: int, probes: Probes, pairs: bool) -> bool:
    """Whether the last node of a chain holds the other channels of x."""
    shape = probes.shape(probe, x)
    if shape is None or len(shape) != 4 or shape[3] % 2 or 0 in shape:
        return False
    numbers = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).view(shape)
    got = moved_places(chain, x, numbers, probe, probes)
    return got is not None and torch.equal(got, other_channels(numbers, pairs))


def _table(node: Any, x: fx.Node, probes: Probes) -> tuple[fx.Node, list[fx.Node]] | None:
    """Where the angles come from that are multiplied with x, and the moves from there."""
    if probes.shape(0, node) is None:
        return None
    source, chain, by = back(node, probes)
    for i, first in enumerate((source, *chain)):
        if by == 1 and all(_spreads(first, chain[i:], x, p, probes) for p in _all(probes)):
            return first, chain[i:]
    return None


def _spreads(source: fx.Node, chain: list[fx.Node], x: fx.Node, probe: int, probes: Probes) -> bool:
    """Whether these moves give every head the same angles of its tokens."""
    shape, heads = probes.shape(probe, source), probes.shape(probe, x)
    if shape is None or heads is None or len(shape) not in (2, 3) or shape[-2:] != heads[2:]:
        return False
    if len(shape) == 3 and shape[0] not in (1, heads[0]):
        return False
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
    moved = moved_places(chain, source, places, probe, probes)
    wanted = places if len(shape) == 2 else places.unsqueeze(1)
    try:
        return moved is not None and torch.equal(moved.expand(heads), wanted.expand(heads))
    except RuntimeError:  # of other sizes
        return False


def _all(probes: Probes) -> range:
    return range(len(probes.shapes))


def table_of_tokens(
    source: fx.Node, x: fx.Node, probes: Probes, made: Tables
) -> tuple[fx.Node, list[fx.Node]] | None:
    """Angles [N, T, turned] for heads x [N, ...], and the nodes that were made for them."""
    counts = [shape[0] for p in _all(probes) if (shape := probes.shape(p, x))]
    shapes = [shape for p in _all(probes) if (shape := probes.shape(p, source))]
    if all(len(s) == 3 and s[0] == n for s, n in zip(shapes, counts, strict=True)):
        return source, []
    if source in made:
        return made[source], []
    items = given(x.graph, counts, probes)
    if items is None:
        return None
    with x.graph.inserting_after(source):
        size = x.graph.call_method("size", items)
    with x.graph.inserting_after(size):
        expanded = x.graph.call_method("expand", (source, size, -1, -1))
    made[source] = expanded
    for found, n, s in zip(probes.shapes, counts, shapes, strict=True):
        found[expanded.name] = (n, *s[-2:])
    return expanded, [size, expanded]
