"""What must be as it was when a model was planned: asked on every call, in compiled code.

A call through Python costs ten times as much after a program, which leaves nothing of the
interpreter in the caches, as in a loop of its own: 0.2 ms for a network of 250 modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from sparseprune.backends import native
from sparseprune.formats import PackedWeight
from sparseprune.program.arguments import Arguments, TensorForm
from sparseprune.program.program import Program

Row = tuple[dict[str, Any], str, Any]
"""A dict, a key, and what it holds there."""
Size = tuple[dict[Any, Any], int]


def _standing(rows: list[Any], sizes: list[Any], versions: list[Any]) -> bool:
    """Whether dicts hold these very values, so many of them, and no tensor was written to."""
    return (
        all(t.get(key) is v for t, key, v in zip(rows[::3], rows[1::3], rows[2::3], strict=True))
        and all(len(t) == n for t, n in zip(sizes[::2], sizes[1::2], strict=True))
        and all(t._version == n for t, n in zip(versions[::2], versions[1::2], strict=True))
    )


standing = _standing if native is None else native.standing


def _flat(rows: Iterable[Sequence[Any]]) -> list[Any]:
    return [part for row in rows for part in row]


class Watch:
    """Whether every module is the one it was, in eval mode, and nobody looks at what it does.

    Attributes:
        rows, sizes: what `standing` is to be asked, one after the other.
    """

    def __init__(self, model: nn.Module) -> None:
        rows: list[Row] = []
        sizes: list[Size] = []
        hooks: list[Any] = [
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
        ]
        for parent in model.modules():
            if isinstance(parent, (Program, PackedWeight)):
                continue
            if isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
                sizes.append((parent._modules, len(parent._modules)))
            for name, child in parent._modules.items():
                if child is not None and not isinstance(child, (Program, PackedWeight)):
                    rows += [(parent._modules, name, child), (child.__dict__, "training", False)]
                    hooks += [child._forward_hooks, child._forward_pre_hooks]
        self.rows, self.sizes = _flat(rows), _flat(sizes)
        self._hooks, self._handles = hooks, -1

    def holds(self) -> bool:
        """The answer now."""
        if is_compiling():  # what is compiled in cannot be traced
            return not any(self._hooks) and _standing(self.rows, self.sizes, [])
        return self.unseen() and bool(standing(self.rows, self.sizes, []))

    def unseen(self) -> bool:
        """Whether there are no hooks; looked for where torch made a handle of any since."""
        if RemovableHandle.next_id == self._handles:
            return True
        handles = RemovableHandle.next_id
        if any(self._hooks):
            return False
        self._handles = handles
        return True


class Quick:
    """The short way to the one program of a model, for tensors given by position.

    Args:
        model: planned.
        program: that one.
        watch: of the model.
        ranks: of the tensors.
    """

    def __init__(
        self, model: nn.Module, program: Program, watch: Watch, ranks: Sequence[int]
    ) -> None:
        rows, versions = program.watched()
        rows.append((model.__dict__, "training", False))
        self._watch, self._ranks = watch, list(ranks)
        self._rows, self._sizes = watch.rows + _flat(rows), watch.sizes
        self._versions = _flat(versions)
        self._hooks = program._forward_hooks, program._forward_pre_hooks
        self._bound = program.bound()

    def holds(self) -> bool:
        """Whether everything is as it was."""
        if any(self._hooks) or not self._watch.unseen():
            return False
        return bool(standing(self._rows, self._sizes, self._versions))

    def run(self, args: tuple[Any, ...]) -> Any:
        """The output of the program; None where the call does not fit it, or something changed."""
        if [getattr(x, "ndim", -1) for x in args] != self._ranks or not self.holds():
            return None
        outputs = self._bound.run(args)
        return None if outputs is None else outputs[0]


def quick_way(model: nn.Module, watch: Watch, name: str, arguments: Arguments) -> Quick | None:
    """The short way now; None where arguments or the program ask for the long one."""
    program: Any = model._modules[name]
    _, forms, named = arguments.spec()
    if not program.compiled or named:
        return None
    if not all(type(f) is TensorForm and f.dtype == torch.float32 for f in forms):
        return None
    return Quick(model, program, watch, [form.rank for form in forms])
