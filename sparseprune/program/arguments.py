"""The arguments of a forward: which are tensors, and what the others must be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
LISTS = (list, tuple)
Call: TypeAlias = tuple[list[Any], dict[str, Any]]


def as_call(example: Any) -> Call:
    """Positional and keyword arguments of example inputs: a tensor, a tuple or a dict."""
    if isinstance(example, Mapping):
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

    Tensors may lie in lists, tuples and dicts.

    Args:
        model: whose forward is called.
        example: what it was called with.

    Raises:
        ValueError: arguments that are neither tensors nor plain nor made of those, or tensors that
            are not on the CPU.
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
        self.names: list[str] = []
        for label, form in (*zip(labels, args, strict=True), *kwargs.items()):
            self.names += _names(label, form, self.names)
        if not self.names:
            raise ValueError("no argument of the forward is a tensor")

    def spec(self) -> tuple[list[str], list[Any], dict[str, Any]]:
        """Names by position, and the form of each argument given by position and by keyword.

        A form is a TensorForm, the plain value that the argument must have, or a list, tuple or
        dict of forms.
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
        found: list[Tensor] = []
        for value, form in zip(values, forms, strict=True):
            if not _fits(value, form, found):
                return None
        return found

    def filled(self, tensors: Sequence[Any]) -> Call:
        """The call with these in place of its tensors."""
        given = iter(tensors)
        args = [_filled(form, given) for form in self._args]
        return args, {name: _filled(form, given) for name, form in self._kwargs.items()}


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise ValueError(f"an argument is a {value.layout} tensor on {value.device}")
        return TensorForm(value.dtype, value.dim())
    if isinstance(value, PLAIN):
        return value
    if type(value) in LISTS:
        return type(value)([_form(v) for v in value])
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {key: _form(v) for key, v in value.items()}
    raise ValueError(f"an argument is a {type(value).__name__}, neither a tensor nor plain")


def _names(label: str, form: Any, taken: Sequence[str]) -> list[str]:
    """A name for every tensor in a form."""
    if isinstance(form, TensorForm):
        name = f"{label}_"
        while name in taken:
            name += "_"
        return [name]
    found: list[str] = []
    parts = form.values() if isinstance(form, dict) else form if isinstance(form, LISTS) else ()
    for i, part in enumerate(parts):
        found += _names(f"{label}_{i}", part, [*taken, *found])
    return found


def _fits(value: Any, form: Any, found: list[Tensor]) -> bool:
    """Whether a value has this form; its tensors are put into `found`."""
    if isinstance(form, TensorForm):
        fits = isinstance(value, Tensor) and form.fits(value)
        if fits:
            found.append(value)
        return fits
    if type(value) is not type(form):
        return False
    if isinstance(form, LISTS):
        pairs = zip(value, form, strict=False)
        return len(value) == len(form) and all(_fits(v, f, found) for v, f in pairs)
    if isinstance(form, dict):
        same = list(value) == list(form)  # in this order, in which a forward may read it
        return same and all(_fits(value[key], f, found) for key, f in form.items())
    return bool(value == form)


def _filled(form: Any, given: Iterator[Any]) -> Any:
    """A form with the next of these in place of every tensor."""
    if isinstance(form, TensorForm):
        return next(given)
    if isinstance(form, LISTS):
        return type(form)([_filled(f, given) for f in form])
    if isinstance(form, dict):
        return {key: _filled(f, given) for key, f in form.items()}
    return form


def _in_order(order: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """By position what can be: a call by keyword is the same call."""
    found, rest = list(args), dict(kwargs)
    if rest:
        for name in order[len(found) :]:
            if name not in rest:
                break
            found.append(rest.pop(name))
    return found, rest
