"""What each layer multiplies and moves in one forward pass.

MACs = positions * weights: a linear layer has one position per row of its input, a convolution one
per output pixel, a transposed convolution one per input pixel. Zero padding counts as multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparseprune.formats import PackedWeight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)

FIRST_FACTOR = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::mv": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
    "aten::addmv": 1,
}
"""Matrix products -> the argument that is multiplied; the next one is the other factor."""
ATTENTION = "aten::_scaled_dot_product"


@dataclass
class Count:
    """What was seen of one module, summed over its calls.

    `positions` is how often each weight of a known layer is used. The rest is of products that a
    module computes itself, such as attention: all MACs, those of nonzero weights, which ops, and
    the modules that own the weights.
    """

    name: str
    module: nn.Module
    calls: int = 0
    positions: int = 0
    activation_bytes: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    ops: set[str] = field(default_factory=set)
    owners: set[int] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Whether the module is a layer whose MACs follow from its weight."""
        return is_layer(self.module)


def is_layer(module: nn.Module) -> bool:
    """A linear layer or convolution, dense or packed, that computes nothing else."""
    if isinstance(module._modules.get("weight"), PackedWeight):
        return True
    return any(type(module).forward is layer.forward for layer in LAYERS)


class Counter(TorchDispatchMode):
    """While active, counts the calls of each module of the model and their matrix products."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.counts = {id(m): Count(name or "(model)", m) for name, m in model.named_modules()}
        self._running: list[Count] = []
        self._owners = {
            parameter.untyped_storage()._cdata: id(module)
            for module in model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count inside; hooks are gone and torch's fast paths as before when it ends."""
        fast = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            for count in self.counts.values():
                before = count.module.register_forward_pre_hook(self._enter)
                stack.callback(before.remove)
                after = count.module.register_forward_hook(
                    self._leave, with_kwargs=True, always_call=True
                )
                stack.callback(after.remove)
            torch.backends.mha.set_fastpath_enabled(False)  # it hides its products in one op
            stack.enter_context(self)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(self.counts[id(module)])

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        count = self._running.pop()
        count.calls += 1
        if count.known and isinstance(out, Tensor):
            inputs = list(_tensors((args, kwargs)))
            count.activation_bytes += out.nbytes + sum(t.nbytes for t in inputs)
            count.positions += _positions(module, inputs[0], out)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = getattr(getattr(func, "_schema", None), "name", "")
        if self._running and not self._running[-1].known:
            self._product(self._running[-1], op, args, out)
        return out

    def _product(self, count: Count, op: str, args: tuple[Any, ...], out: Any) -> None:
        """Add one op to the module that called it, if it is a product."""
        if op.startswith(ATTENTION):
            query, key, value = factors = args[:3]
            per_query = key.shape[-2] * (query.shape[-1] + value.shape[-1])
            macs = query.numel() // max(1, query.shape[-1]) * per_query
        elif op == "aten::convolution":
            factors = args[:2]
            pixels = args[0] if args[6] else out  # argument 6: transposed
            macs = pixels.numel() // max(1, pixels.shape[1]) * args[1].numel()
        elif op in FIRST_FACTOR:
            start = FIRST_FACTOR[op]
            factors = args[start : start + 2]
            macs = out.numel() * factors[0].shape[-1]
        else:
            return
        count.macs += macs
        count.ops.add("attention" if op.startswith(ATTENTION) else op.removeprefix("aten::"))
        for factor in factors:
            owner = self._owners.get(factor.untyped_storage()._cdata)
            if owner is None:
                count.activation_bytes += factor.nbytes
                continue
            count.owners.add(owner)
            if not factor.is_meta:
                macs = macs * int(torch.count_nonzero(factor)) // max(1, factor.numel())
        count.nonzero_macs += macs
        count.activation_bytes += sum(t.nbytes for t in list(_tensors(out))[:1])


def _positions(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """How often one call uses each weight."""
    if isinstance(module, nn.Linear):
        return out.numel() // max(1, module.out_features)
    if isinstance(module, TRANSPOSED):
        return x.numel() // max(1, module.in_channels)
    if isinstance(module, CONVOLUTIONS):
        return out.numel() // max(1, module.out_channels)
    weight = module._modules["weight"]
    assert isinstance(weight, PackedWeight)
    return out.numel() // max(1, weight.rows)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
