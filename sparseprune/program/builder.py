"""Steps, sources and derived tensors of one program, collected while a region is lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from sparseprune.formats import PackedWeight
from sparseprune.program.derive import Derived, Made, make
from sparseprune.program.steps import Step


@dataclass
class Builder:
    """What :class:`~sparseprune.program.program.Program` is made from.

    Args:
        steps: so far, values numbered as they came.
        sources: of the tensors so far.
        count: of those tensors.
        derived, own: what the program will hold itself.
    """

    steps: list[Step] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    count: int = 0
    derived: dict[str, Derived] = field(default_factory=dict)
    own: dict[str, Made] = field(default_factory=dict)
    _next: int = 0

    def add(self, kind: Callable[..., Step], /, **fields: Any) -> int:
        """Append a step; gives the number of its value."""
        self.steps.append(kind(out=self._next, **fields))
        self._next += 1
        return self._next - 1

    def use(self, *sources: tuple[str, Any]) -> int:
        """Append sources (path, tensor or packed weight or None); gives the first one's index."""
        first = self.count
        for path, held in sources:
            if held is not None:
                self.sources.append(path)
                self.count += len(held.parts) if isinstance(held, PackedWeight) else 1
        return first

    def derive(
        self, recipe: str, path: str, layer: nn.Module | None, *numbers: int
    ) -> tuple[str, Any]:
        """Something made from a layer, once: its source, and the thing."""
        name = "_".join([recipe, path.replace(".", "_"), *map(str, numbers)])
        while name in self.derived and self.derived[name].path != path:
            name += "_"
        if name not in self.derived:
            self.derived[name] = Derived(recipe, path, name, numbers)
            self.own[name] = make(self.derived[name], layer)
        return f".{name}", self.own[name]


Emit = Callable[[Builder, list[int]], int]
"""Appends the steps of a node that reads these values; gives the value of the node."""


@dataclass(frozen=True)
class Lowered:
    """A node that a program can compute.

    Args:
        reads: the nodes whose values it takes.
        emit: its steps.
        takes, gives: "image" or "tokens"; None: whatever kind its values have.
        sparse: it multiplies by a packed weight of the model.
        free: it has no step.
    """

    reads: tuple[fx.Node, ...]
    emit: Emit
    takes: str | None = None
    gives: str | None = None
    sparse: bool = False
    free: bool = False


@dataclass(frozen=True)
class Call:
    """What a pattern may look at.

    Args:
        node: the node of the graph.
        path: of its module, or "".
        shapes: of a node on each probe of the model, or None where it is no float32 tensor.
    """

    node: fx.Node
    path: str
    shapes: Callable[[Any], tuple[tuple[int, ...], ...] | None]

    def rank(self, x: Any) -> int:
        """Dimensions of a value; -1 if it is none."""
        shapes = self.shapes(x)
        return -1 if shapes is None else len(shapes[0])
