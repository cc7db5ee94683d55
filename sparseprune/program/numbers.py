"""Numbers that a forward reads from shapes, each with the node that computes it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, fx


class Recorder(Protocol):
    """What numbers ask of the tracer that made them."""

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """A number made from others."""

    def settle(self, number: Any) -> Any:
        """Its value in the example, which is then the only one that the graph serves."""


class Number:
    """A number of the example that is a node of the graph as well.

    Arithmetic makes more of them. Whoever compares one, or needs a plain number, settles it.
    """

    def __init__(self, value: Any, node: fx.Node, tracer: Any) -> None:
        self.value, self.node, self.tracer = value, node, tracer

    def _settled(self) -> Any:
        return self.tracer.settle(self)

    def __index__(self) -> int:
        return operator.index(self._settled())

    def __int__(self) -> int:
        return int(self._settled())

    def __float__(self) -> float:
        return float(self._settled())

    def __bool__(self) -> bool:
        return bool(self.tracer.compute(operator.ne, self, 0))

    def __hash__(self) -> int:
        return hash(self._settled())

    def __str__(self) -> str:
        return str(self._settled())

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        return format(self._settled(), form)


class Int(Number, torch.SymInt):
    """A whole number. Functions of torch take it for a SymInt, ``isinstance`` for an int."""

    __class__ = property(lambda self: int)  # type: ignore[assignment]


class Float(Number, torch.SymFloat):
    """A fraction, likewise."""

    __class__ = property(lambda self: float)  # type: ignore[assignment]


KINDS = {int: Int, float: Float}
"""Type of a value -> what it becomes while a forward is recorded."""


def plain(value: Any) -> Any:
    """The same with numbers as in the example."""
    kind = type(value)
    if issubclass(kind, Number):
        return value.value
    if kind in (tuple, list, torch.Size):
        return kind([plain(v) for v in value])
    if kind is dict:
        return {key: plain(v) for key, v in value.items()}
    if kind is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value


def _binary(function: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Number, other: Any) -> Any:
        if isinstance(other, Tensor):
            return NotImplemented  # the tensor's own method records it
        first, second = (other, self) if swapped else (self, other)
        if not isinstance(other, (int, float)):  # a list, a string
            return function(*(self._settled() if x is self else x for x in (first, second)))
        return self.tracer.compute(function, first, second)

    return method


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: self.tracer.compute(function, self)


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _binary(getattr(operator, _name), False))
    setattr(Number, f"__r{_name}__", _binary(getattr(operator, _name), True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", _binary(getattr(operator, _name), False))
for _space, _names in ((operator, ("neg", "pos", "abs")), (math, ("floor", "ceil", "trunc"))):
    for _name in _names:
        setattr(Number, f"__{_name}__", _unary(getattr(_space, _name)))
