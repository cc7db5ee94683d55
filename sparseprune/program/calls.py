"""Calls of functions of torch: how torch.fx writes them, and what they may ask of a tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import is_tensor_method_or_property

SIZES = {"shape", "size", "numel", "nelement", "__len__"}
"""What gives numbers that are part of the graph."""
ANSWERS = {
    "dim", "ndim", "ndimension", "dtype", "device", "layout", "is_floating_point", "is_complex",
    "is_signed", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_sparse", "is_quantized", "is_nested",
    "is_mkldnn", "itemsize", "element_size", "get_device", "result_type",
}  # fmt: skip
"""What else may be asked: the answer depends on dtypes and shapes alone."""
VALUES = {"__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist",
          "is_nonzero", "equal", "allclose"}  # fmt: skip
"""What depends on more."""
EFFECTS = {"__setitem__", "_assert"}
"""What gives nothing and is part of the graph all the same."""
Operators = dict[str, Callable[..., Any]]
_ONE: Operators = {"neg": operator.neg, "__invert__": operator.invert}
_TWO: Operators = {
    **{n: getattr(operator, n) for n in ("add", "mul", "sub", "matmul", "eq", "ne", "lt", "le",
                                         "gt", "ge", "pow")},
    **{f"__{n}__": getattr(operator, n) for n in ("getitem", "floordiv", "xor", "eq", "ne", "lt",
                                                  "le", "gt", "ge")},
    **{f"__{n}__": getattr(operator, f"{n}_") for n in ("and", "or")},
    "div": operator.truediv, "remainder": operator.mod,
}  # fmt: skip
_THREE: Operators = {"__setitem__": operator.setitem}
OPERATORS: tuple[Operators, ...] = ({}, _ONE, _TWO, _THREE)
"""By the number of operands: method -> the operator that Python calls it for."""
SWAPPED: Operators = {
    "__rsub__": operator.sub, "__rpow__": operator.pow, "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv, "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod, "__rmatmul__": operator.matmul,
}  # fmt: skip
"""Method -> the operator whose right operand it is called on."""


@dataclass(frozen=True)
class Spelled:
    """A call as a node of torch.fx: ``op``, ``target`` and ``args``; ``name`` is what was asked."""

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]


def spell(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled:
    """The call that a mode of torch's functions was told of, as torch.fx writes it."""
    name = function.__name__
    if name == "__get__":
        name = function.__self__.__name__
        return Spelled(name, "call_function", getattr, (args[0], name))
    if not is_tensor_method_or_property(function) and getattr(Tensor, name, None) != function:
        return Spelled(name, "call_function", function, args)
    if name in SWAPPED:
        return Spelled(name, "call_function", SWAPPED[name], args[::-1])
    if not kwargs and len(args) < len(OPERATORS) and name in OPERATORS[len(args)]:
        return Spelled(name, "call_function", OPERATORS[len(args)][name], args)
    if name == "__len__":
        return Spelled(name, "call_method", "size", (*args, 0))
    return Spelled(name, "call_method", name, args)
