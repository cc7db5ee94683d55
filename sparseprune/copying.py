"""A copy of any model, with plain weights in place of hooks and parametrizations."""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils import remove_spectral_norm as remove_old_spectral_norm
from torch.nn.utils import remove_weight_norm as remove_old_weight_norm

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""What a sparse layer inherits from the dense one."""


def copy_settled(model: nn.Module) -> nn.Module:
    """A deep copy in which every weight is a plain parameter with its effective value.

    Masks of torch.nn.utils.prune, weight_norm (both kinds) and other parametrizations are made
    permanent in the copy; the given model keeps them.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():  # hooks leave computed weights, which deepcopy refuses
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    settled = copy.deepcopy(model, memo)
    for module in list(settled.modules()):
        _settle(module)
    return settled


def copy_with(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy whose given modules are replaced wherever they occur; all other tensors are shared."""
    memo: dict[int, object] = {id(old): new for old, new in replacements.items()}
    gone = {id(t) for old in replacements for t in (*old.parameters(), *old.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in gone:
            memo[id(tensor)] = tensor
    for old, new in replacements.items():
        for hooks in HOOKS:
            getattr(new, hooks).update(getattr(old, hooks))
    copied = copy.deepcopy(model, memo)
    _leave_fast_paths(copied, set(map(id, replacements.values())))
    return copied


def _settle(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        # torch hangs a property on a class of its own, which a copy shares with its original:
        # taking the property off would take it off both.
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
        for name in list(module.parametrizations):  # type: ignore[arg-type, union-attr]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
        elif type(hook).__name__ == "WeightNorm":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                remove_old_weight_norm(module, hook.name)  # type: ignore[attr-defined]
        elif type(hook).__name__ == "SpectralNorm":
            remove_old_spectral_norm(module, hook.name)  # type: ignore[attr-defined]


def _leave_fast_paths(model: nn.Module, sparse: set[int]) -> None:
    """torch's fused transformer paths read weights past the modules: not with sparse modules."""
    for module in model.modules():
        if sparse.isdisjoint(map(id, module.modules())):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
