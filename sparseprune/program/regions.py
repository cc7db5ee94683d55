"""Which nodes of a graph run in one program: connected, and contracted without making a cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from sparseprune.program.builder import Lowered

Before = dict[fx.Node, set[fx.Node]]
"""Node -> what must run before it."""


@dataclass
class Region:
    """nodes: in the order of the graph."""

    nodes: list[fx.Node]

    def inputs(self, lowered: dict[fx.Node, Lowered], kinds: Kinds) -> list[tuple[fx.Node, str]]:
        """(node, kind) of every value from outside, in the order in which they are read."""
        inside = set(self.nodes)
        found = {
            (read, kinds.taken(node, read)): None
            for node in self.nodes
            for read in lowered[node].reads
            if read not in inside
        }
        return list(found)

    def outputs(self) -> list[fx.Node]:
        """The nodes that others read."""
        inside = set(self.nodes)
        return [node for node in self.nodes if not inside.issuperset(node.users)]


class Kinds:
    """Whether each value is an image or tokens, as those say who make or take it.

    Args:
        lowered: the supported nodes. Those whose values would have to be both are taken out.
        rank: dimensions of a value.
    """

    def __init__(self, lowered: dict[fx.Node, Lowered], rank: Callable[[fx.Node], int]) -> None:
        self._lowered, self._rank = lowered, rank
        while True:
            self._made: dict[fx.Node, str] = {}
            self._infer()
            wrong = [node for node in lowered if not self._agrees(node)]
            if not wrong:
                return
            del lowered[wrong[0]]

    def taken(self, node: fx.Node, read: fx.Node) -> str:
        """The kind in which a node reads a value."""
        return self._lowered[node].takes or self._made[node]

    def made(self, node: fx.Node) -> str:
        """The kind of a node's value."""
        return self._made[node]

    def _infer(self) -> None:
        open_ = [n for n, low in self._lowered.items() if low.gives is None]
        self._made.update({n: low.gives for n, low in self._lowered.items() if low.gives})
        changed = True
        while changed:
            changed = False
            for node in open_:
                kind = None if node in self._made else self._said(node)
                if kind is not None:
                    self._made[node], changed = kind, True
            unsaid = next((n for n in open_ if n not in self._made), None)
            if not changed and unsaid is not None:
                self._made[unsaid] = "image" if self._rank(unsaid) in (3, 4, 5) else "tokens"
                changed = True

    def _said(self, node: fx.Node) -> str | None:
        """What the values read, then the readers, say of a node that keeps its kind."""
        sources = (self._made.get(read) for read in self._lowered[node].reads)
        users = [user for user in node.users if user in self._lowered]
        readers = (self._lowered[u].takes or self._made.get(u) for u in users)
        return next((kind for kind in (*sources, *readers) if kind), None)

    def _agrees(self, node: fx.Node) -> bool:
        reads = [read for read in self._lowered[node].reads if read in self._lowered]
        kinds = {self._made[read] for read in reads}
        wanted = self.taken(node, node)
        return kinds <= {wanted} and (wanted == "tokens" or self._rank(node) in (2, 3, 4, 5))


def find(graph: fx.Graph, lowered: dict[fx.Node, Lowered], before: Before) -> list[Region]:
    """Connected sets of supported nodes between which no other node lies.

    A node's level counts how often the longest way to it enters the supported nodes from outside:
    nodes of one level have nobody else between them, so any of them can be contracted.
    """
    levels: dict[fx.Node, int] = {}
    for node in in_order(list(graph.nodes), before):
        levels[node] = max(
            (levels[b] + (node in lowered and b not in lowered) for b in before[node]), default=0
        )
    parent: dict[fx.Node, fx.Node] = {node: node for node in lowered}

    def top(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node, low in lowered.items():
        for read in low.reads:
            if read in lowered and levels[read] == levels[node]:
                parent[top(read)] = top(node)
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in lowered:
            groups.setdefault(top(node), []).append(node)
    return [Region(nodes) for nodes in groups.values()]


def in_order(nodes: Iterable[fx.Node], before: Before) -> list[fx.Node]:
    """The nodes, each after what must run before it, otherwise as they come.

    Raises:
        ValueError: a cycle.
    """
    waiting, done = list(nodes), set[fx.Node]()
    ordered: list[fx.Node] = []
    while waiting:
        rest: list[fx.Node] = []
        for node in waiting:
            ready = before[node] <= done
            (ordered if ready else rest).append(node)
            if ready:
                done.add(node)
        if len(rest) == len(waiting):
            raise ValueError("the operations of the graph wait for each other")
        waiting = rest
    return ordered
