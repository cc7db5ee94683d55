"""What noise and gates need: layers that hooks can follow, and parameters beside their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseprune.criteria.scoring import layers_of
from sparseprune.criteria.statistics import Layer
from sparseprune.errors import bad, warn
from sparseprune.masks import Masks
from sparseprune.selection import Ignore
from sparseprune.training.method import Method, Same


class Following(Method):
    """A method that acts on weights where their modules use them, by hooks.

    Hooks keep nothing of the method: a deep copy of the model while it trains is noisy or gated
    by itself. With torch.compile, prepare before the first call.
    """

    layers: dict[str, Layer]
    """Weight name -> the weight and all modules that use it; from `prepare` on."""

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        weights = self._chosen(model)
        self.layers = _followed(f"{type(self).__name__}.prepare", model, weights)

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that the method acts on."""
        return self._weights(model)

    def finalize(self) -> Masks:
        """Ends it: the model is an ordinary one again, what is pruned is exact zero.

        Returns the masks; warns if they empty a layer. Raises ValueError before `prepare`.
        """
        masks = super().finalize()
        emptied = [name for name in self.layers if not masks[name].any()]
        if emptied:
            warn(f"{type(self).__name__}.finalize: no weight is left in {', '.join(emptied)}")
        return masks


class Extended(Following):
    """A method that trains a parameter of its own beside every weight.

    The parameter is registered on all modules that use the weight (so it is in the state_dict, and
    moves with the model) and trained by the same optimizer, in a group of its own without weight
    decay. `finalize` removes both; make LR schedulers and DistributedDataParallel anew after it.
    """

    attribute: ClassVar[str]
    """The parameter's name on the module."""

    def __init__(self, lr: float | None = None, ignore: Ignore = ()) -> None:
        """lr: of these parameters; by default that of the optimizer's first group."""
        super().__init__(ignore)
        if lr is not None and not lr > 0:
            raise bad(type(self).__name__, "lr", "positive", lr, "pass a rate, e.g. 1e-3")
        self.lr = lr

    def prepare(self: Same, model: nn.Module, optimizer: Optimizer) -> Same:
        """Takes up `model` and the `optimizer` over its weights; returns self.

        Before `DistributedDataParallel(model)`, which would not sum gradients of parameters that
        come later, and before an LR scheduler, which counts the optimizer's groups.
        Raises ValueError or TypeError for what does not fit, before anything changes.
        """
        operation = f"{type(self).__name__}.prepare"
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            got, way_out = type(model).__name__, "prepare first, then wrap the model"
            raise bad(operation, "model", "not wrapped yet", got, way_out)
        scheduled = isinstance(optimizer, Optimizer) and "initial_lr" in optimizer.param_groups[0]
        if scheduled and self._model is None:
            got, way_out = "one with an LR scheduler", "make the scheduler after prepare"
            raise bad(operation, "optimizer", "not scheduled yet", got, way_out)
        return super().prepare(model, optimizer)

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super()._begin(model, optimizer)
        values = {name: nn.Parameter(self._initial(layer)) for name, layer in self.layers.items()}
        self._group = _add_group(optimizer, self.attribute, values, self.lr)
        for name, layer in self.layers.items():
            for module in layer.modules:
                module.register_parameter(self.attribute, values[name])
                self._handles += self._follow(module)

    def _initial(self, layer: Layer) -> Tensor:
        """The parameter's first value."""
        raise NotImplementedError

    def _follow(self, module: nn.Module) -> list[RemovableHandle]:
        """Hooks on one module that uses a weight."""
        raise NotImplementedError

    def _own(self) -> dict[str, Tensor]:
        """Weight name -> the parameter beside it."""
        self._prepared(self.attribute)
        return {n: getattr(layer.modules[0], self.attribute) for n, layer in self.layers.items()}

    def _end(self) -> Masks:
        _, optimizer = self._prepared("finalize")
        for parameter in self._group["params"]:
            optimizer.state.pop(parameter, None)
        # load_state_dict makes new dicts of the groups: the parameters tell which one it is
        own = {id(parameter) for parameter in self._group["params"]}
        optimizer.param_groups[:] = [
            g for g in optimizer.param_groups if own.isdisjoint(map(id, g["params"]))
        ]
        for layer in self.layers.values():
            for module in layer.modules:
                delattr(module, self.attribute)
        return super()._end()


def substitute(
    module: nn.Module, make: Callable[[nn.Module], Mapping[str, Tensor]]
) -> list[RemovableHandle]:
    """Hooks: inside its forward the module sees `make(module)`, name -> tensor, as its parameters.

    Gradients reach the parameters through what `make` computes from `module._parameters`.
    """
    return [
        module.register_forward_pre_hook(_Put(make)),
        module.register_forward_hook(_take, always_call=True),
    ]


class MethodHook:
    """A hook by which a method follows a weight: one method at a time."""


@dataclass(frozen=True)
class _Put(MethodHook):
    make: Callable[[nn.Module], Mapping[str, Tensor]]

    def __call__(self, module: nn.Module, args: Any) -> None:
        module.__dict__.update(self.make(module))  # found before the registered parameters


def _take(module: nn.Module, args: Any, output: Any) -> None:
    for name in module._parameters:
        module.__dict__.pop(name, None)


def _followed(
    operation: str, model: nn.Module, weights: Mapping[str, nn.Parameter]
) -> dict[str, Layer]:
    """The layers of these weights; an error where a weight is used past the hooks of its module."""
    layers = layers_of(model, weights)
    of = {id(weight): name for name, weight in weights.items()}

    def refuse(
        name: str, expected: str, got: str, way_out: str = "add the layer to ignore"
    ) -> None:
        raise bad(operation, f"weight {name!r}", expected, got, way_out)

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and id(module.out_proj.weight) in of:
            got = "one that nn.MultiheadAttention reads past it"
            refuse(of[id(module.out_proj.weight)], "used by its own layer", got)
        for name in (of[id(p)] for p in module._parameters.values() if id(p) in of):
            if module not in layers[name].modules:
                got = f"one tied to a {type(module).__name__}"
                refuse(name, "used by linear layers and convolutions only", got)
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if any(isinstance(hook, MethodHook) for hook in hooks):
                refuse(name, "free", "one under another method", "finalize the other method first")
    return layers


def _add_group(
    optimizer: Optimizer, attribute: str, values: Mapping[str, nn.Parameter], lr: float | None
) -> dict[str, Any]:
    """A new group of the optimizer over `values`: options of the first, no weight decay."""
    first = optimizer.param_groups[0]
    options = {k: v for k, v in first.items() if k not in ("params", "param_names")}
    if "weight_decay" in options:
        options["weight_decay"] = 0.0
    if lr is not None:
        options["lr"] = torch.full_like(first["lr"], lr) if isinstance(first["lr"], Tensor) else lr
    named = [(f"{name.removesuffix('weight')}{attribute}", v) for name, v in values.items()]
    optimizer.add_param_group(
        {**options, "params": named if "param_names" in first else list(values.values())}
    )
    return optimizer.param_groups[-1]
