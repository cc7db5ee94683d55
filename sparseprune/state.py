"""What a forward may change of its model: buffers, and attributes of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sparseprune.copying import HOOKS
from sparseprune.formats import PackedWeight
from sparseprune.nn import LEAVES
from sparseprune.program.numbers import Number


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards buffers, attributes and hooks are as before, whatever runs of the model left.

    Of layers of this package, which no run changes but tuning does, hooks alone are looked at.
    """
    modules = [m for m in model.modules() if not isinstance(m, (*LEAVES, PackedWeight))]
    before = [(module, dict(_own(module)), dict(module._buffers)) for module in modules]
    kept = [(v, copy(v)) for _, own, _ in before for v in own.values() if type(v) in CONTAINERS]
    kept += [
        (hooks, copy(hooks)) for m in model.modules() for hooks in (getattr(m, h) for h in HOOKS)
    ]
    values = {b: b.clone() for _, _, buffers in before for b in buffers.values() if b is not None}
    try:
        yield
    finally:
        for module, own, buffers in before:
            for name in _own(module).keys() - own.keys():
                del vars(module)[name]
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(buffers)
        for container, content in kept:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for buffer, value in values.items():
            if not torch.equal(buffer, value):  # a write, which makes programs derive anew
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(value)


State: TypeAlias = dict[str, dict[str, Any]]
"""Path of a module -> its buffers and what was set on it."""


def state_of(model: nn.Module) -> State:
    """Buffers and attributes of every module, without what torch keeps there itself."""
    return {path: {**_own(m), **m._buffers} for path, m in model.named_modules()}


def changed(traced: nn.Module, before: State) -> str | None:
    """The first attribute or buffer that a forward has set while torch.fx traced it, or None.

    A graph sets nothing, so it would leave these as they were.
    """
    for path, now in state_of(traced).items():
        old = before.get(path, {})
        for name, value in now.items():
            made = any(isinstance(leaf, (fx.Proxy, Number)) for leaf in pytree.tree_leaves(value))
            if made or (type(value) in PLAIN and (name not in old or _differ(old[name], value))):
                return f"{path}.{name}".removeprefix(".")
    return None


def _differ(old: Any, value: Any) -> bool:
    return type(old) is not type(value) or bool(old != value)


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OF_TORCH}


PLAIN = (type(None), bool, int, float, str)
CONTAINERS = (list, dict, set)
OF_TORCH = frozenset(vars(nn.Module()))
