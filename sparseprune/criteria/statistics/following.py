"""Which tensor is a layer's unit activation: found while the model runs, without tracing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sparseprune.criteria.statistics.base import Layer, Units

NONLINEAR = frozenset((
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "elu", "elu_", "selu",
    "selu_", "celu", "gelu", "silu", "mish", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardtanh",
    "hardtanh_", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "hardshrink",
    "softshrink", "tanhshrink", "threshold", "clamp", "clamp_", "clamp_min", "clamp_min_"
))  # fmt: skip
DROPOUT = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"))
FOLLOWED = NONLINEAR | DROPOUT | {"batch_norm", "instance_norm"}
"""Functions that act on each unit by itself: their output is the unit's activation."""

IN_PLACE_OPERATORS = frozenset(("__iadd__", "__isub__", "__imul__", "__itruediv__"))


class Follower(TorchFunctionMode):
    """While active, finds the activation of the units of each layer and hands it to `arrived`.

    A layer's output is followed through functions of `FOLLOWED`, called as modules or functions,
    in place or not; the first other function that reads the tensor ends the chase, as does the end
    of the model. `arrived(layer, units)` may write into the value: later layers see it.
    """

    def __init__(self, layers: dict[str, Layer], arrived: Callable[[Layer, Units], None]) -> None:
        super().__init__()
        self._layers = layers
        self._arrived = arrived
        self._chased: dict[int, tuple[Layer, Units]] = {}  # by id; Units keep the tensor alive
        self._busy = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow inside; hooks are gone when it ends."""
        handles = [
            module.register_forward_hook(self._start(layer), with_kwargs=True)
            for layer in self._layers.values()
            for module in layer.modules
        ]
        try:
            with self:
                yield
            for layer, units in list(self._chased.values()):
                self._arrive(layer, units)
        finally:
            self._chased.clear()
            for handle in handles:
                handle.remove()

    def _start(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self._chased[id(output)] = layer, Units(module, first_tensor(args, kwargs), output)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self._chased or self._busy or name in ("__get__", "__set__", "dim", "size"):
            return func(*args, **kwargs)
        if args and id(args[0]) in self._chased and name in FOLLOWED:
            layer, units = self._chased.pop(id(args[0]))
            out = func(*args, **kwargs)
            function = units.function if name in DROPOUT else name.rstrip("_")
            self._chased[id(out)] = layer, Units(units.module, units.x, out, function)
            return out
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._chased:
                self._arrive(*self._chased.pop(id(leaf)))
                if name in IN_PLACE_OPERATORS and leaf is args[0]:
                    # `y += x` binds the result, so that a copy may take the write
                    args = (leaf.clone(), *args[1:])
        return func(*args, **kwargs)

    def _arrive(self, layer: Layer, units: Units) -> None:
        self._busy = True  # what the listener computes is none of the model's
        try:
            self._arrived(layer, units)
        finally:
            self._busy = False


def first_tensor(args: Any, kwargs: Any) -> Tensor:
    """The first tensor among a call's arguments."""
    return next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
