"""The arguments of a forward: which are tensors, and what the others must be."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
Call: TypeAlias = tuple[list[Any], dict[str, Any]]


def as_call(example: Any) -> Call:
    """Positional and keyword arguments of example inputs: a tensor, a tuple or a dict."""
    if isinstance(example, dict):
        return [], dict(example)
    if isinstance(example, (tuple, list)):
        return list(example), {}
    return [example], {}


@dataclass(frozen=True)
class TensorForm:
    """Type and rank of a tensor on the CPU; its sizes may change."""

    dtype: torch.dtype
    rank: int

    def fits(self, x: Tensor) -> bool:
        """Whether a program made for the one serves the other."""
        return x.dtype == self.dtype and x.dim() == self.rank and x.device.type == "cpu"


class Arguments:
    """The form of one call: later calls of the same form fit what was traced with it.

    Args:
        model: whose forward is called.
        example: what it was called with.

    Raises:
        ValueError: arguments that are neither tensors nor plain, or not float32 on the CPU.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        kinds = inspect.signature(model.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        order = [p.name for p in kinds if p.kind in positional]
        args, kwargs = _in_order(order, *as_call(example))
        self._set(order, [_form(a) for a in args], {n: _form(v) for n, v in kwargs.items()})

    def _set(self, order: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
        self._order, self._args, self._kwargs = order, args, kwargs
        labels = [*order, *(f"extra_{i}" for i in range(len(args)))][: len(args)]
        forms = {**dict(zip(labels, args, strict=True)), **kwargs}
        self.names = [f"{n}_" for n, form in forms.items() if isinstance(form, TensorForm)]
        if not self.names:
            raise ValueError("no argument of the forward is a tensor")

    def spec(self) -> tuple[list[str], list[Any], dict[str, Any]]:
        """Names by position, and the form of each argument given by position and by keyword.

        A form is a TensorForm, or the plain value that the argument must have.
        """
        return self._order, self._args, self._kwargs

    @classmethod
    def from_spec(cls, order: list[str], args: list[Any], kwargs: dict[str, Any]) -> Arguments:
        """The inverse of :meth:`spec`.

        Raises:
            ValueError: no argument is a tensor.
        """
        arguments = cls.__new__(cls)
        arguments._set(order, args, kwargs)
        return arguments

    def tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """The tensors of a call, in the order of ``names``, or None where it has another form."""
        if kwargs:
            args, kwargs = _in_order(self._order, args, kwargs)
        if len(args) != len(self._args) or len(kwargs) != len(self._kwargs):
            return None
        values = list(args)
        forms = list(self._args)
        for name, form in self._kwargs.items():
            if name not in kwargs:
                return None
            values.append(kwargs[name])
            forms.append(form)
        found = []
        for value, form in zip(values, forms, strict=True):
            if isinstance(form, TensorForm):
                if not isinstance(value, Tensor) or not form.fits(value):
                    return None
                found.append(value)
            elif type(value) is not type(form) or value != form:
                return None
        return found

    def filled(self, tensors: Sequence[Any]) -> Call:
        """The call with these in place of its tensors."""
        given = iter(tensors)
        args = [next(given) if isinstance(form, TensorForm) else form for form in self._args]
        kwargs = {
            name: next(given) if isinstance(form, TensorForm) else form
            for name, form in self._kwargs.items()
        }
        return args, kwargs


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise ValueError(f"an argument is a {value.layout} tensor on {value.device}")
        return TensorForm(value.dtype, value.dim())
    if isinstance(value, PLAIN):
        return value
    raise ValueError(f"an argument is a {type(value).__name__}, neither a tensor nor plain")


def _in_order(order: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """By position what can be: a call by keyword is the same call."""
    found, rest = list(args), dict(kwargs)
    if rest:
        for name in order[len(found) :]:
            if name not in rest:
                break
            found.append(rest.pop(name))
    return found, rest
