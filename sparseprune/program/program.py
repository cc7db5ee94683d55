"""A program as a module: its text, and where the tensors come from that its steps use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sparseprune import backends
from sparseprune.errors import bad
from sparseprune.formats import CsrWeight, PackedWeight
from sparseprune.ops.bound import POSSIBLE, Bound, dispatched
from sparseprune.ops.run import parse
from sparseprune.paths import find, find_module
from sparseprune.program.derive import READ, Derived, check_derived, make, packing_of, tensors_of
from sparseprune.program.fits import check_fits
from sparseprune.program.steps import Csr, Output
from sparseprune.program.text import to_text

_BIND = "bind the model that the program was made for"


class Program(nn.Module):
    """Runs a part of a model in one call; most of the weights stay where they are in that model.

    A source is the path of a tensor or packed weight in the root model ("layer1.0.conv1.weight",
    "fc.bias"); one that begins with a dot (".weight_0") lies in the program itself. The program
    owns what it derives from layers that stay dense: it is made anew when they change.

    Args:
        text: the steps (:mod:`sparseprune.program.steps`).
        sources: of the tensors, in the order in which the steps count them.
        derived: what the program owns, as data.
        own: name -> packed weight or tensor, for every derived one.
    """

    def __init__(
        self,
        text: str,
        sources: Iterable[str],
        derived: Iterable[Derived] = (),
        own: dict[str, PackedWeight | Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.text, self.sources, self.derived = text, tuple(sources), tuple(derived)
        self.backend, self.namespace, self.compiled = "auto", "", False
        outputs = sum(isinstance(step, Output) for step in parse(text))
        self.single = outputs == 1
        # Lists, which nn.Module does not look into: these modules and tensors belong to others.
        self._bound: list[tuple[nn.Module, str, str]] = []
        self._layers: list[nn.Module] = []
        self._seen: list[tuple[Tensor, int]] | None = None
        self._ready: Bound | None = None
        for name, made in (own or {}).items():
            self._own(name, made)

    def _own(self, name: str, made: PackedWeight | Tensor) -> None:
        if isinstance(made, PackedWeight):
            self.add_module(name, made)
        elif name in self._buffers:
            self._buffers[name] = made
        else:
            self.register_buffer(name, made)

    def spec(self) -> dict[str, Any]:
        """What :meth:`from_spec` needs besides what the program owns, as plain data."""
        return {
            "text": self.text,
            "sources": list(self.sources),
            "derived": [list(astuple(d)) for d in self.derived],
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], root: nn.Module) -> Program:
        """The inverse of :meth:`spec` for a model, which the spec need not come from.

        What the program owns is derived anew from the layers of the model.

        Raises:
            ValueError: a text that is not a program, or one that does not fit this model.
        """
        text = spec["text"]
        if to_text(list(parse(text))) != text:  # spaces or digits that Python alone can read
            raise bad("Program", "text", "as to_text writes it", text[:80], "save the model again")
        derived = [Derived(r, path, name, tuple(n)) for r, path, name, n in spec["derived"]]
        own = {}
        for each in derived:
            layer = _layer(root, each)
            check_derived(each, layer)
            own[each.name] = make(each, layer)
        if len(own) != len(derived):
            raise bad("Program", "derived", "things of different names", [d.name for d in derived],
                      "save the model again")  # fmt: skip
        program = cls(text, spec["sources"], derived, own).bind(root)
        check_fits(parse(text), program.held())
        return program

    def bind(self, root: nn.Module) -> Self:
        """Find the sources in this model, whose modules the program uses from now on.

        Raises:
            ValueError: a source that the model does not have.
        """
        self._bound = []
        for source in self.sources:
            base, path = (self, source[1:]) if source.startswith(".") else (root, source)
            parent, _, name = path.rpartition(".")
            try:
                owner, found = find_module(base, parent), find(base, path)
            except ValueError as error:
                expected = "a tensor of the model"
                raise bad("Program.bind", source[:80], expected, str(error), _BIND) from error
            if isinstance(found, PackedWeight):
                self._bound += [(found, "_buffers", buffer) for buffer in found.parts]
            else:
                table = "_parameters" if name in owner._parameters else "_buffers"
                self._bound.append((owner, table, name))
        self._layers = [_layer(root, d) for d in self.derived]
        self._seen = self._ready = None
        return self

    def tensors(self) -> list[Tensor]:
        """The tensors that the steps use, as the modules hold them now."""
        # Attributes of the modules would go through Module.__getattr__, 1 us each.
        return [getattr(module, table)[name] for module, table, name in self._bound]

    def held(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Every tensor that the steps use, after the module that holds it and its name there."""
        return [(m, name, getattr(m, table)[name]) for m, table, name in self._bound]

    def refresh(self) -> None:
        """Derive anew what comes from layers that have changed since the last call."""
        if not self.derived:
            return
        pairs = zip(self.derived, self._layers, strict=True)
        seen = [(t, _version(t)) for derived, layer in pairs for t in tensors_of(derived, layer)]
        before, self._seen = self._seen, seen
        if before is None:
            return
        same = len(before) == len(seen) and all(
            old is new and count == now
            for (old, count), (new, now) in zip(before, seen, strict=True)
        )
        if not same:
            for derived, layer in zip(self.derived, self._layers, strict=True):
                made = make(derived, layer)
                if isinstance(made, PackedWeight):  # the buffers move in: sources point at them
                    held: Any = getattr(self, derived.name)
                    for name in made.parts:
                        held._buffers[name] = made._buffers[name]
                else:
                    self._own(derived.name, made)

    def follow(self) -> None:
        """Write the text and what derives anew, after weights that it uses took other packings."""
        steps = list(parse(self.text))
        for place, step in enumerate(steps):
            if isinstance(step, Csr):
                steps[place] = replace(step, block=self.weight_of(step).block)
        self.text = to_text(steps)
        self.derived = tuple(
            replace(each, numbers=packing_of(getattr(self, each.name)))
            if each.recipe == "conv"
            else each
            for each in self.derived
        )

    def weight_of(self, step: Csr) -> CsrWeight:
        """The packed weight of a step."""
        return self._bound[step.tensors][0]  # type: ignore[return-value]

    def use(self, backend: str = "auto") -> Self:
        """Choose who computes, now and after every move to another device.

        Raises:
            ValueError: unknown backend, or one that refuses this device.
        """
        chosen = backends.choose(self._device(), backend)
        self.namespace, self.backend = chosen.namespace, backend
        self.compiled, self._ready = chosen is backends.CPU and POSSIBLE, None
        return self

    def _device(self) -> torch.device:
        return self.tensors()[0].device if self._bound else torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._bound:  # a forced backend that cannot follow gives way to "auto"
            self.use(self.backend if backends.serves(self.backend, self._device()) else "auto")
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which have tensors of their own."""
        return {**self.__dict__, "_seen": None, "_ready": None}

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs: a tensor, or a tuple of several."""
        outputs = self.bound().run(inputs) if self.compiled and not dispatched() else None
        if outputs is None:
            op = getattr(torch.ops, self.namespace).run.default
            outputs = op(list(inputs), self.tensors(), self.text)
        return outputs[0] if self.single else tuple(outputs)

    def bound(self) -> Bound:
        """The program with its weights as they are now."""
        weights, before = self.tensors(), self._ready
        if before is not None and before.program is self.text and _same(before.weights, weights):
            return before
        self._ready = Bound(weights, self.text)
        return self._ready

    def watched(self) -> tuple[list[Any], list[Any]]:
        """What :meth:`refresh` and :meth:`bound` look at.

        Returns:
            Dicts, keys and values; tensors and how often they were written to.
        """
        own = [(self.__dict__, "text", self.text), (self.__dict__, "compiled", self.compiled)]
        held = [(getattr(m, t), name, getattr(m, t)[name]) for m, t, name in self._bound]
        read = [
            (table, name, table[name])
            for layer in self._layers
            for table in (layer._parameters, layer._buffers)
            for name in READ
            if name in table
        ]
        written = [(t, t._version) for _, _, t in read if t is not None and not t.is_inference()]
        return [*own, *held, *read], written

    def extra_repr(self) -> str:
        return f"{len(self.text.splitlines())} steps, {len(self.sources)} sources"


def _layer(root: nn.Module, derived: Derived) -> nn.Module:
    try:
        return find_module(root, derived.path)
    except ValueError as error:
        argument = f"source of {derived.name!r}"
        raise bad("Program.bind", argument, "a layer of the model", str(error), _BIND) from error


def _same(before: list[Tensor], now: list[Tensor]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
