"""What a forward read from shapes while it was recorded: numbers it passes on, answers it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseprune.program import mutation

Known = tuple[int | float, ...]
NUMBER = "sparseprune_number"
"""Key in the meta of nodes that are numbers, or read them."""
MOST = 4096
"""Shapes of inputs that are remembered."""


class Otherwise(Exception):
    """A call in which the forward may go another way than in the graph."""


def same(value: Any, answer: Any) -> None:
    """The check of an answer that the forward was given when it was recorded.

    Raises:
        Otherwise: it would get another one.
    """
    if type(value) is not type(answer) or value != answer:
        raise Otherwise(f"{value!r}, not {answer!r}")


def of_length(parts: Sequence[Any], count: int) -> None:
    """The same for the number of parts that something was split into.

    Raises:
        Otherwise: there would be another number.
    """
    same(len(parts), count)


CHECKS = (same, of_length)
"""What checks answers in a graph."""


class Sizes:
    """The numbers that the graph of a model takes beside its tensors, for each shape of those.

    They depend on the shapes of the inputs alone, so one run of the layers tells them, and whether
    every answer that the forward was given still holds. Later calls look them up.

    Args:
        graph: of the inputs' tensors; its output is a tuple of numbers, by the names in
            :attr:`names`, and :data:`CHECKS` in it check answers.
        names: of the numbers.
    """

    def __init__(self, graph: fx.Graph, names: Sequence[str]) -> None:
        self.graph, self.names = graph, list(names)
        self._function: Any = None
        self._found: dict[tuple[torch.Size, ...], Known | None] = {}

    def of(self, model: nn.Module, tensors: Sequence[Tensor]) -> Known | None:
        """The numbers of a call, or None where the forward may go another way."""
        key = tuple([x.shape for x in tensors])
        try:
            return self._found[key]
        except KeyError:
            pass
        found: Known | None = None
        try:
            with torch.no_grad():
                found = self._compiled()(model, *(x.clone() for x in tensors))
        except Otherwise:
            pass
        except Exception:  # the layers will say what is wrong with this call
            return None
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[key] = found
        return found

    @property
    def narrow(self) -> bool:
        """Whether any call so far was one in which the forward may go another way."""
        return None in self._found.values()

    def only(self, names: Iterable[str], modules: dict[str, nn.Module]) -> Sizes:
        """The same for those of the numbers that somebody reads."""
        kept = [name for name in self.names if name in set(names)]
        *_, output = self.graph.nodes
        numbers = dict(zip(self.names, output.args[0], strict=True))  # type: ignore[arg-type]
        output.args = (tuple(numbers[name] for name in kept),)
        _drop_unread(self.graph, modules)
        return Sizes(self.graph, kept)

    def _compiled(self) -> Any:
        if self._function is None:
            self._function = compiled(self.graph)
        return self._function


def compiled(graph: fx.Graph) -> Any:
    """A graph as a function of the model and of what it takes."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<forward planned by sparseprune>", "exec"), scope)
    return scope["forward"]


def part(graph: fx.Graph, modules: dict[str, nn.Module]) -> Sizes | None:
    """Take what reads numbers and checks answers out of a graph, which then takes those numbers.

    Returns:
        What tells them; None where the graph has none.
    """
    asks = {n for n in graph.nodes if n.target in CHECKS or NUMBER in n.meta}
    read = [n for n in graph.nodes if NUMBER in n.meta and not asks.issuperset(n.users)]
    if not asks:
        return None
    other, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op != "output":
            copied[node] = other.node_copy(node, copied.__getitem__)
    other.output(tuple(copied[n] for n in read))
    names = []
    with graph.inserting_before(next(iter(graph.nodes))):
        for node in read:
            taken = graph.placeholder("number", type_expr=node.meta[NUMBER])
            taken.target = taken.name  # which no other node has
            names.append(taken.name)
            node.replace_all_uses_with(taken, delete_user_cb=lambda user: user not in asks)
    for node in reversed(list(graph.nodes)):
        if node in asks:
            graph.erase_node(node)
    _drop_unread(graph, modules)
    _drop_unread(other, modules)
    return Sizes(other, names)


def _drop_unread(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Nodes that nobody reads, unless they check or change something."""
    for node in reversed(list(graph.nodes)):
        does = node.op in ("placeholder", "output") or node.target in (*CHECKS, torch._assert)
        if not node.users and not does and not mutation.changes(node, modules):
            graph.erase_node(node)
