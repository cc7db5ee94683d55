"""Moves of elements in a graph: where those of a value come from, whatever calls moved them.

Not calls are compared but places: the moves are made with numbers in place of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem, mul, neg, truediv
from typing import Any

import torch
from torch import Tensor, fx

from sparseprune.program.steps_sequences import end_of_heads

MOVES = {
    "view", "reshape", "unflatten", "flatten", "transpose", "swapaxes", "permute", "unbind",
    "chunk", "split", "contiguous", "select", "unsqueeze", "squeeze", "expand",
    "repeat_interleave", torch.repeat_interleave, torch.reshape,
    torch.unflatten, torch.flatten, torch.transpose, torch.swapaxes, torch.permute, torch.unbind,
    torch.chunk, torch.split, torch.functional.split, torch.select, getitem,
}  # fmt: skip
"""What moves elements and makes none."""
MADE = {neg, torch.neg, "neg", torch.cat, torch.concat, torch.stack}
"""What makes new elements of moved ones."""
SIZED = {"view", "reshape", "unflatten", "expand", torch.reshape, torch.unflatten}
"""Moves that are told sizes."""


@dataclass(frozen=True)
class Probes:
    """What each probe of a graph found: shapes of float32, bool and given tensors; numbers."""

    shapes: list[dict[str, tuple[int, ...]]]
    numbers: list[dict[str, Any]]
    flags: list[dict[str, tuple[int, ...]]]
    given: list[dict[str, tuple[int, ...]]]

    def shape(self, probe: int, node: Any) -> tuple[int, ...] | None:
        """Of a node, or None where it is no float32 tensor."""
        return self.shapes[probe].get(node.name) if isinstance(node, fx.Node) else None

    def number(self, node: Any) -> float | None:
        """What a node or constant is in all probes, if it is one number."""
        if not isinstance(node, fx.Node):
            return node if type(node) in (int, float) else None
        found = {probe.get(node.name) for probe in self.numbers}
        value = found.pop() if len(found) == 1 else None
        return value if type(value) in (int, float) else None


def factor(node: Any, probes: Probes) -> float | None:
    """The number by which a node multiplies its first argument, if it does that."""
    plain = len(node.args) == 2 and not node.kwargs  # torch.div may round
    by = probes.number(node.args[1]) if plain else None
    if by is None or not isinstance(node.args[0], fx.Node):
        return None
    if node.target in (mul, torch.mul, "mul"):
        return by
    return 1 / by if by and node.target in (truediv, torch.div, "div") else None


def back(node: Any, probes: Probes) -> tuple[fx.Node, list[fx.Node], float]:
    """Where the elements of a node come from, the moves from there to it, and their factor."""
    chain: list[fx.Node] = []
    scale = 1.0
    while node.op in ("call_function", "call_method") and isinstance(node.args[0], fx.Node):
        by = factor(node, probes)
        if by is None and node.target not in MOVES:
            break
        chain.append(node)
        scale, node = scale * (1 if by is None else by), node.args[0]
    return node, chain[::-1], scale


def first_channel(
    source: fx.Node, chain: list[fx.Node], apart: tuple[int, ...], turned: bool, probes: Probes
) -> tuple[int, int, int] | None:
    """The channel of tokens at which heads begin that these moves take apart, if they do.

    And channels from one to the next, and how often each of them is there, one after the other.

    apart: heads, where they have a dimension, and channels of each. turned: tokens come last.
    """
    found = set()
    for probe in range(len(probes.shapes)):
        shape = probes.shape(probe, source)
        if shape is None or len(shape) != 3 or 0 in shape:
            return None
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
        free = lambda step, width=shape[2]: 0 < step < width  # noqa: E731
        moved = _moved(chain, source, places, probe, probes, free)
        if moved is None or moved.dim() != 2 + len(apart):
            return None
        moved = moved.transpose(-1, -2) if turned else moved
        moved = moved.unsqueeze(1) if len(apart) == 1 else moved
        times = times_of(moved)
        heads, head = moved.shape[1] // times, apart[-1]
        first, second = (int(moved[0, i * times % moved.shape[1], 0, 0]) for i in (0, 1))
        stride = second - first if heads > 1 else head
        end = end_of_heads(first, stride, heads, head)
        if stride < 1 or end > shape[2]:
            return None
        wanted = places[..., first:end].unfold(-1, head, stride).transpose(1, 2)
        if not torch.equal(moved, wanted.repeat_interleave(times, 1)):
            return None
        found.add((first, stride, times))
    return found.pop() if len(found) == 1 else None


def times_of(moved: Tensor) -> int:
    """How often the first head of [N, heads, ...] is there, one after the other."""
    starts = moved[0, :, 0, 0]
    times = int((starts == starts[0]).sum())
    return times if moved.shape[1] % times == 0 else 1


def repeated(source: fx.Node, chain: list[fx.Node], turned: bool, probes: Probes) -> int | None:
    """How often these moves repeat each head of [N, heads, T, channels], if they do nothing else.

    turned: tokens come last then.
    """
    found = set()
    for probe in range(len(probes.shapes)):
        shape = probes.shape(probe, source)
        if shape is None or len(shape) != 4 or 0 in shape:
            return None
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
        of_sequence = torch.Size(shape[1:]).numel()
        free = lambda step, d=shape[3], n=of_sequence: step != d and step < n  # noqa: E731
        moved = _moved(chain, source, places, probe, probes, free)
        if moved is None or moved.dim() != 4:
            return None
        moved = moved.transpose(-1, -2) if turned else moved
        times = times_of(moved)
        if not torch.equal(moved, places.repeat_interleave(times, 1)):
            return None
        found.add(times)
    return found.pop() if len(found) == 1 else None


def joined(core: fx.Node, heads: int, head: int, probes: Probes) -> list[fx.Node] | None:
    """The moves after which the heads of every token lie side by side."""
    chain, node = list[fx.Node](), core
    while len(node.users) == 1 and len(chain) < 4:
        node = next(iter(node.users))
        if node.target not in MOVES or node.args[0] not in (core, *chain):
            return None
        chain.append(node)
        if all(_joins(chain, core, p, heads, head, probes) for p in range(len(probes.shapes))):
            return chain
    return None


def _joins(chain: list[fx.Node], core: fx.Node, probe: int, heads: int, head: int,
           probes: Probes) -> bool:  # fmt: skip
    shape = probes.shape(probe, core)
    if shape is None or len(shape) != 4 or 0 in shape:
        return False
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
    of_sequence = heads * head * shape[2]
    free = lambda step: step != head and 0 < step < of_sequence  # noqa: E731
    moved = _moved(chain, core, places, probe, probes, free)
    return moved is not None and torch.equal(moved, places.transpose(1, 2).flatten(2))


def _moved(chain: list[fx.Node], source: fx.Node, places: Tensor, probe: int, probes: Probes,
           free: Callable[[int], bool]) -> Tensor | None:  # fmt: skip
    """`places` after the moves; None where they insist on a number of tokens or sequences.

    free: whether a dimension along which places grow so fast is one of channels.
    """
    env: dict[Any, Any] = {source: places}

    def known(node: fx.Node) -> Any:
        return env[node] if node in env else probes.numbers[probe][node.name]

    for node in chain:
        if node.target not in (*MOVES, *MADE):  # multiplies
            env[node] = env[node.args[0]]
            continue
        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
            moved = (
                getattr(args[0], str(node.target))(*args[1:], **kwargs)
                if node.op == "call_method"
                else node.target(*args, **kwargs)  # type: ignore[operator]
            )
        except (KeyError, RuntimeError, TypeError, IndexError):
            return None
        env[node] = moved
        if node.target in SIZED and not all(map(free, _fixed(node, moved))):
            return None
    return env[chain[-1]] if chain else places


def moved_places(
    chain: list[fx.Node], source: fx.Node, places: Tensor, probe: int, probes: Probes
) -> Tensor | None:
    """`places` after moves and what is made of them, whatever sizes these insist on."""
    return _moved(chain, source, places, probe, probes, lambda step: True)


def _fixed(node: Any, moved: Tensor) -> Iterator[int]:
    """How fast places grow along the dimensions whose size is written as a number."""
    given = node.args[1:]
    sizes = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    start = 0
    if "unflatten" in str(node.target):
        start, sizes = int(given[0]) % (moved.dim() - len(given[1]) + 1), given[1]
    for dim, size in enumerate(sizes, start=start):
        if type(size) is int and size > 1 and moved.shape[dim] > 1:
            step = moved.select(dim, 1).flatten()[:1] - moved.select(dim, 0).flatten()[:1]
            if step != 0:  # else it repeats
                yield int(step)
