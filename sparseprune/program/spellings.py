"""Several ways to write one thing made into the one that patterns know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from operator import floordiv, getitem, mul
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Probe = Callable[[Any], "tuple[tuple[int, ...], ...] | None"]
"""The shapes of a node on every probe, or None where it is no tensor."""
Before = dict[fx.Node, set[fx.Node]]
"""Node -> what must run before it."""
Known = Callable[[fx.Node], bool]
"""Whether a program can compute a node."""

ASKING_METHODS = {"size", "dim", "numel"}
ASKING_FUNCTIONS = {getattr, getitem, mul, floordiv}
"""What only numbers are read and made with, where it makes no tensor."""
RESHAPES = ("view", "reshape", torch.reshape)
TURNS: dict[Any, tuple[Any, ...]] = {
    **dict.fromkeys(("transpose", "swapaxes", torch.transpose, torch.swapaxes), (1, 2)),
    **dict.fromkeys(("permute", torch.permute), (0, 2, 1)),
}
PARTS = ("chunk", "split", torch.chunk, torch.split, torch.functional.split)


def spell(graph: fx.Graph, shapes: Probe, known: Known) -> Choices:
    """Rewrites the nodes of a graph; what it computes stays the same.

    view(x.size(0), -1) becomes flatten(1), so that nobody reads x for its size alone; channels
    dealt by two views and a transposition become channel_shuffle; part i of a chunk or split of
    channels becomes narrow, as long as it is not put back.
    """
    choices = Choices()
    for node in list(graph.nodes):
        if node.target in RESHAPES and known(node):
            _write(node, "call_method", "flatten", (node.args[0], 1))
        elif (dealt := _dealt(node, shapes)) is not None:
            _write(node, "call_function", F.channel_shuffle, dealt)
        elif (part := _part(node, shapes, known)) is not None:
            x, start, length = part
            whole: Any = node.args[0]
            choices.choose(node, torch.narrow, (x, 1, start, length), [whole])
    return choices


def _write(node: fx.Node, op: str, target: Any, args: tuple[Any, ...]) -> None:
    node.op, node.target, node.args, node.kwargs = op, target, args, {}


def drop_sizes(graph: fx.Graph, shapes: Probe, before: Before | None = None) -> None:
    """What asks for sizes, or moves values, that nobody reads any more."""
    for node in reversed(list(graph.nodes)):
        asks = node.target in ASKING_METHODS if node.op == "call_method" else (
            node.op == "call_function" and node.target in ASKING_FUNCTIONS
        )  # fmt: skip
        moves = node.op != "output" and node.target in (*RESHAPES, *TURNS, "contiguous")
        if not node.users and ((asks and shapes(node) is None) or moves):
            _erase(node, before or {})


def _erase(node: fx.Node, before: Before) -> None:
    for earlier in before.values():
        earlier.discard(node)
    before.pop(node, None)
    node.graph.erase_node(node)


def _dealt(node: fx.Node, shapes: Probe) -> tuple[fx.Node, int] | None:
    """(x, groups) of a view of x with its groups apart, turned, and viewed as x again."""
    if node.target not in RESHAPES or not isinstance(node.args[0], fx.Node):
        return None
    turned = node.args[0]
    while turned.target == "contiguous":
        turned = turned.args[0]  # type: ignore[assignment]
    wanted = TURNS.get(turned.target)
    if wanted is None or not _turns(turned, len(wanted)):
        return None
    grouped = turned.args[0]
    if not isinstance(grouped, fx.Node) or grouped.target not in RESHAPES:
        return None
    x = grouped.args[0]
    before, between, after = shapes(x), shapes(grouped), shapes(node)
    if not isinstance(x, fx.Node) or before is None or between is None or before != after:
        return None
    groups = between[0][1]
    fits = all(
        len(a) in (3, 4, 5) and b == (a[0], groups, a[1] // groups, *a[2:])
        for a, b in zip(before, between, strict=True)
    )
    return (x, groups) if fits else None


def _turns(node: fx.Node, axes: int) -> bool:
    """Whether it swaps dimensions 1 and 2 and leaves the others."""
    order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if axes == 2:
        return set(order) == {1, 2}
    return list(order) == [0, 2, 1, *range(3, len(order))]


def _part(node: fx.Node, shapes: Probe, known: Known) -> tuple[fx.Node, int, int] | None:
    """(x, start, length) of part i of a chunk or split of the channels of x."""
    whole = node.args[0] if node.target is getitem else None
    if not isinstance(whole, fx.Node) or whole.target not in PARTS:
        return None
    x, given, dim = _split(*whole.args, **whole.kwargs)
    number = node.args[1]
    before, after = _channels(shapes(x), dim), _channels(shapes(node), dim)
    if before is None or after is None or type(number) is not int or number < 0 or not known(x):
        return None
    if isinstance(given, (tuple, list)):
        return x, [0, *accumulate(given)][number], after
    if type(given) is not int:
        return None
    chunks = "chunk" in getattr(whole.target, "__name__", str(whole.target))
    return x, number * (-(-before // given) if chunks else given), after


def _split(x: Any = None, sizes: Any = None, dim: Any = 0, **names: Any) -> tuple[Any, Any, Any]:
    """The arguments of torch.split and torch.chunk, as tensor, sizes or number, and dimension."""
    return (
        names.get("input", names.get("tensor", x)),
        names.get("chunks", names.get("split_size", names.get("split_size_or_sections", sizes))),
        dim,
    )


def _channels(shapes: tuple[tuple[int, ...], ...] | None, dim: Any) -> int | None:
    """How many, where `dim` is that of the channels and inputs of every size have as many."""
    if shapes is None or len(shapes[0]) not in (3, 4, 5) or dim not in (1, 1 - len(shapes[0])):
        return None
    found = {shape[1] for shape in shapes}
    return found.pop() if len(found) == 1 else None


@dataclass
class Choices:
    """Nodes written in another way, right for inputs with as many channels as in the probes.

    Programs take no others, so inside of them nothing is lost; elsewhere `settle` puts back what
    was written.
    """

    _written: dict[fx.Node, tuple[Any, ...]] = field(default_factory=dict)
    _passed: dict[fx.Node, None] = field(default_factory=dict)

    def choose(
        self,
        node: fx.Node,
        function: Any,
        args: tuple[Any, ...],
        passed: Iterable[fx.Node],
        options: dict[str, Any] | None = None,
    ) -> None:
        """Makes a node a call of this function, for which those passed over are not needed."""
        self._written[node] = (node.op, node.target, node.args, node.kwargs)
        self._passed.update(dict.fromkeys(passed))
        _write(node, "call_function", function, args)
        node.kwargs = options or {}

    def unread(self, graph: fx.Graph) -> set[fx.Node]:
        """What nobody reads as long as nothing is put back."""
        found: set[fx.Node] = set()
        for node in reversed(list(graph.nodes)):
            if node in self._passed and node not in self._written and found.issuperset(node.users):
                found.add(node)
        return found

    def settle(self, inside: set[fx.Node], before: Before) -> None:
        """Puts back the nodes that are not inside programs, and drops what nobody reads then."""
        for node, written in self._written.items():
            if node not in inside:
                node.op, node.target, node.args, node.kwargs = written
                before[node].update(node.all_input_nodes)
        places = {node: place for place, node in enumerate(before)}
        for node in sorted(self._passed, key=places.__getitem__, reverse=True):
            if not node.users:
                _erase(node, before)
