"""Masks of attention in a graph, made what programs add to scores: a number per query and key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from sparseprune.program.moves import Probes

Masks = dict[tuple[fx.Node, Any], fx.Node]
"""Mask of the forward and what it fills in -> the node that is added to scores."""
LOWEST = -1e9
"""Scores that are filled with this or less count for nothing, as those to which it is added."""


@dataclass(frozen=True)
class Scores:
    """Where the sizes of scores come from.

    turned: keys come last. own: queries see the keys of their own sequence.
    """

    query: fx.Node
    key: fx.Node
    turned: bool
    own: bool

    def of(self, probe: int, probes: Probes) -> tuple[int, int, int] | None:
        """Sequences, queries and keys; None where heads have no dimension."""
        query, key = probes.shape(probe, self.query), probes.shape(probe, self.key)
        if not query or not key or len(query) != 4:
            return None
        return query[0], query[2], key[-1 if self.turned else -2]


def scores_of(
    mask: fx.Node, fill: float | None, sizes: Scores, probes: Probes, masks: Masks
) -> tuple[fx.Node | None, list[fx.Node]]:
    """The node that a program adds to scores [N, 1, queries, keys], and all that were made for it.

    None where the mask differs between heads, or its sizes are not known.

    Args:
        mask: numbers that are added; True where a key is seen; with `fill` where it is not.
        fill: what is in the place of scores there.
        sizes: of the scores.
        probes: of the graph; what is made here becomes known there.
        masks: made before, for other layers.
    """
    flags = all(mask.name in found for found in probes.flags)
    wanted = [sizes.of(p, probes) for p in range(len(probes.shapes))]
    found = [(probes.flags[p] if flags else s).get(mask.name) for p, s in enumerate(probes.shapes)]
    if any(w is None or f is None or len(f) != 4 for w, f in zip(wanted, found, strict=True)):
        return None, []
    pairs = [(w, f) for w, f in zip(wanted, found, strict=True) if w and f]
    if any(f[1] != 1 or f[3] != w[2] for w, f in pairs) or (fill is not None and not flags):
        return None, []
    expanded = _expanded(mask, pairs, sizes.own, probes)
    if expanded is None or (fill is not None and fill > LOWEST):
        return None, []
    if (mask, fill) in masks:
        return masks[mask, fill], []
    made = [mask, *_numbers(mask, flags, fill)]
    if any(size != -1 for size in expanded):
        made += _expand(made[-1], expanded)
    masks[mask, fill] = made[-1]
    for shapes, (w, _) in zip(probes.shapes, pairs, strict=True):
        shapes[made[-1].name] = (w[0], 1, *w[1:])
    return made[-1], made[1:]


def _expanded(
    mask: fx.Node, pairs: list[tuple[Any, Any]], own: bool, probes: Probes
) -> list[Any] | None:
    """What `expand` takes for sequences and queries: -1 where all are there, else (node, dim)."""
    taken: list[Any] = []
    for dim, place in ((0, 0), (1, 2)):
        if all(f[place] == w[dim] for w, f in pairs):
            taken.append(-1)
        elif any(f[place] != 1 for _, f in pairs):
            return None
        elif dim == 0:
            taken.append(given(mask.graph, [w[0] for w, _ in pairs], probes))
        else:
            taken.append((mask, -1) if own and all(w[1] == w[2] for w, _ in pairs) else None)
    return None if None in taken else taken


def given(graph: fx.Graph, counts: list[int], probes: Probes) -> tuple[fx.Node, int] | None:
    """An argument of the forward that has as many items as there are sequences."""
    for node in graph.nodes:
        sizes = [found.get(node.name, ()) for found in probes.given]
        if node.op == "placeholder" and [s[:1] for s in sizes] == [(n,) for n in counts]:
            return (node, 0) if len(set(counts)) > 1 else None
    return None


def _numbers(mask: fx.Node, flags: bool, fill: float | None) -> list[fx.Node]:
    """Nodes that make flags numbers: 0 where a key is seen."""
    if not flags:
        return []
    if fill is not None and math.isfinite(fill):
        number = _after(mask, "float")
        return [number, _after(number, "mul", fill)]
    seen = [] if fill is None else [_after(mask, "logical_not")]
    number = _after([mask, *seen][-1], "float")
    return [*seen, number, _after(number, "log")]


def _expand(scores: fx.Node, taken: list[Any]) -> list[fx.Node]:
    made = list[fx.Node]()
    sizes = list[Any]()
    for size in taken:
        if size != -1:
            node, dim = size
            made.append(_after([scores, *made][-1], "size", dim, of=node))
        sizes.append(-1 if size == -1 else made[-1])
    expanded = _after([scores, *made][-1], "expand", sizes[0], -1, sizes[1], -1, of=scores)
    return [*made, expanded]


def _after(place: fx.Node, method: str, *args: Any, of: fx.Node | None = None) -> fx.Node:
    """A new call of a method of a node, or of another one."""
    with place.graph.inserting_after(place):
        return place.graph.call_method(method, (of or place, *args))
