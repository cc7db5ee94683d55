"""A converted model that runs its programs where a call fits them, and layer by layer elsewhere."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from sparseprune.errors import summary
from sparseprune.formats import PackedWeight
from sparseprune.ops.bound import dispatched
from sparseprune.program.arguments import Arguments, as_call
from sparseprune.program.lower import Lowering, lower
from sparseprune.program.sizes import Sizes
from sparseprune.program.tracing import NotTraced
from sparseprune.program.watch import Quick, Watch, quick_way
from sparseprune.state import unchanged

KEPT = ("_watched", "_quick")
"""What a planned model remembers from call to call."""
TOLERANCE = 1e-4
"""Largest difference from the layers one by one, relative to the largest output."""


def plan(model: nn.Module, example_inputs: Any) -> str | None:
    """Let a converted model run its programs. In place; class, names and weights stay.

    The model becomes an instance of a subclass of its class. Its forward runs the programs where
    the call has the form of the example, is on the CPU, needs no gradient, no module inside is
    watched by hooks, replaced or in training mode; otherwise the forward of the class. What the
    forward reads from plain attributes is as it was at planning. A dense convolution or batch
    normalisation whose tensors change is packed anew, but a change through ``.data`` goes unseen.

    Args:
        model: in eval mode, with sparse layers.
        example_inputs: as for ``convert``; other batch and image sizes work as well, layer by layer
            where the forward would take another branch for them.

    Returns:
        Why there are no programs, the model being unchanged; None where there are.
    """
    if reason := _refusal(model):
        return reason
    try:
        arguments = Arguments(model, example_inputs)
        args, kwargs = as_call(example_inputs)
        example = arguments.tensors(args, kwargs)
        assert example is not None, "an example has its own form"
        with torch.no_grad():
            probes = _probes(model, arguments, example)
            lowering = lower(model, arguments, _cloned(probes))
            become(model, arguments, lowering)
            if reason := _differs(model, arguments, probes):
                unplan(model)
            return reason
    except (NotTraced, ValueError) as error:
        return str(error)
    except Exception as error:  # the model's own code, which may do anything
        if isinstance(model, Planned):
            unplan(model)
        return summary(error)


def narrow(model: nn.Module) -> bool:
    """Whether a planned model was tried with another batch and went layer by layer."""
    return isinstance(model, Planned) and model._sizes is not None and model._sizes.narrow


def unplan(model: nn.Module) -> nn.Module:
    """Take the programs off again, in place."""
    if isinstance(model, Planned):
        for name in type(model)._program_names:
            model._modules.pop(name, None)
        model._forget()
        plain: Any = model
        plain.__class__ = type(model)._unplanned
    return model


def _refusal(model: nn.Module) -> str | None:
    if isinstance(model, Planned):
        return "the model has programs already"
    if model.training:
        return "the model is in training mode"
    if "forward" in vars(model) or hasattr(type(model), "__deepcopy__"):
        return "the model has a forward or a copying of its own"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'!r} has forward hooks"
    return None


def _probes(model: nn.Module, arguments: Arguments, example: list[Tensor]) -> list[list[Tensor]]:
    """The example, and the example with one more in its batch if the model takes that."""
    batches = {len(x) if x.dim() else 0 for x in example}
    if len(batches) != 1 or 0 in batches:
        return [example]
    more = [torch.cat([x, x[:1]]) for x in example]
    try:
        with unchanged(model):
            _call(model, arguments, more)
    except Exception:  # a model for one batch size
        return [example]
    return [example, more]


def _cloned(probes: list[list[Tensor]]) -> list[list[Tensor]]:
    """A forward may change its inputs in place."""
    return [[x.clone() for x in tensors] for tensors in probes]


def _call(model: nn.Module, arguments: Arguments, tensors: list[Tensor]) -> Any:
    args, kwargs = arguments.filled([x.clone() for x in tensors])
    return model.forward(*args, **kwargs)


def _differs(model: nn.Module, arguments: Arguments, probes: list[list[Tensor]]) -> str | None:
    """How the planned model differs from its layers one by one, or None."""
    for tensors in probes:
        args, kwargs = arguments.filled([x.clone() for x in tensors])
        if model._programmed(args, kwargs) is None:  # type: ignore[operator]
            if tensors is not probes[0]:
                continue
            return "the programs do not serve the example itself"
        with unchanged(model):
            got, form = pytree.tree_flatten(_call(model, arguments, tensors))
        args, kwargs = arguments.filled([x.clone() for x in tensors])
        with unchanged(model):
            layers = type(model)._unplanned.forward(model, *args, **kwargs)  # type: ignore[attr-defined]
        expected, wanted = pytree.tree_flatten(layers)
        if form != wanted:
            return "the outputs of the programs have another structure"
        for mine, its in zip(got, expected, strict=True):
            if isinstance(its, Tensor) and not agrees(mine, its):
                return "the outputs of the programs differ from those of the layers"
    return None


def agrees(got: Any, expected: Tensor) -> bool:
    """Whether an output is what it should be, up to rounding."""
    if not isinstance(got, Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return False
    scale = float(expected[finite].abs().max()) if bool(finite.any()) else 0.0
    error = float((got - expected)[finite].abs().max()) if bool(finite.any()) else 0.0
    return error <= TOLERANCE * scale + 1e-7


class Planned:
    """Mixed into the class of a planned model, before it in the order of resolution."""

    _unplanned: type[nn.Module]
    _arguments: Arguments
    _program_names: tuple[str, ...]
    _alone: str | None
    _graph: fx.Graph
    _sizes: Sizes | None
    _form: pytree.TreeSpec | None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """The programs where the call fits them, else the forward of the class."""
        plain = not kwargs and not dispatched()
        quick: Quick | None = self.__dict__.get("_quick") if plain else None
        if quick is not None and (outputs := quick.run(args)) is not None:
            return outputs
        taken = self._programmed(args, kwargs)
        if taken is None:
            return type(self)._unplanned.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        outputs = self._run(*taken)  # type: ignore[attr-defined]
        if plain and self._alone and (quick is None or not quick.holds()):
            self._quick = quick_way(self, self._watched, self._alone, self._arguments)  # type: ignore[arg-type]
        return outputs

    def _programmed(self, args: Any, kwargs: Any) -> list[Any] | None:
        """What the graph takes of a call that the programs serve, or None."""
        if self.training:  # type: ignore[attr-defined]
            return None
        tensors = self._arguments.tensors(args, kwargs)
        if tensors is None or not self._as_planned():
            return None
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return None
        numbers: tuple[Any, ...] | None = ()
        if self._sizes is not None:  # which are looked up: no graph of torch.compile's
            numbers = None if is_compiling() else self._sizes.of(self, tensors)  # type: ignore[arg-type]
        if numbers is None:
            return None
        if not is_compiling():
            for name in self._program_names:
                self._modules[name].refresh()  # type: ignore[attr-defined]
        return [*numbers, *tensors]

    def _as_planned(self) -> bool:
        """Whether every module is the one it was, and nobody watches what it does."""
        watched = self.__dict__.get("_watched")
        if watched is None:
            watched = Watch(self)  # type: ignore[arg-type]
            if not is_compiling():  # which puts tables of its own in place
                self._watched = watched
        return watched.holds()

    def _forget(self) -> None:
        for name in KEPT:
            self.__dict__.pop(name, None)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()  # the tensors that were, which would live on
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        state = {name: value for name, value in self.__dict__.items() if name not in KEPT}
        twin.__dict__.update(copy.deepcopy(state, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled without its programs: their class exists in this process alone."""
        state = {name: value for name, value in self.__dict__.items() if name not in KEPT}
        programs = self._program_names
        state["_modules"] = {n: m for n, m in state["_modules"].items() if n not in programs}
        return _plain, (self._unplanned, state)


def _plain(cls: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """A model of this class with these attributes."""
    model = cls.__new__(cls)
    model.__setstate__(state)
    return model


class PlannedSequential(Planned):
    """An nn.Sequential, which would count its programs as layers."""

    _modules: dict[str, nn.Module]

    def _layers(self) -> dict[str, nn.Module]:
        return {n: m for n, m in self._modules.items() if n not in self._program_names}

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._layers().values())

    def __len__(self) -> int:
        return len(self._modules) - len(self._program_names)

    def __getitem__(self, index: Any) -> Any:
        layers = self._layers()
        if isinstance(index, slice):
            return nn.Sequential(*list(layers.values())[index])
        if not -len(layers) <= index < len(layers):
            raise IndexError(f"index {index} is out of range")
        return next(islice(layers.values(), index % len(layers), None))


def become(model: nn.Module, arguments: Arguments, lowering: Lowering) -> None:
    """Give the model its programs and a class whose forward runs them."""
    cls = type(model)
    mixin = PlannedSequential if isinstance(model, nn.Sequential) else Planned
    members = {
        "_unplanned": cls,
        "_arguments": arguments,
        "_program_names": tuple(lowering.programs),
        "_alone": lowering.alone() if lowering.sizes is None else None,
        "_graph": lowering.graph,
        "_sizes": lowering.sizes,
        "_form": lowering.form,
        "_run": lowering.function(),
        "forward": _forward_of(cls),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,  # by which packages know their classes
        "__doc__": cls.__doc__,
    }
    planned = type(f"Planned{cls.__name__}", (mixin, cls), members)
    backend = next(m.backend for m in model.modules() if isinstance(m, PackedWeight))
    for name, program in lowering.programs.items():
        model.add_module(name, program.use(backend).eval())
    model.__class__ = planned


def _forward_of(cls: type[nn.Module]) -> Any:
    """The forward of a planned class, which says of itself what that of the class says."""

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    return forward
