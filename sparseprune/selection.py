"""Which weights of a model can be pruned, and how users name them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseprune.errors import bad, bad_type, suggest

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NO_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
"""Layers whose parameters of several dimensions multiply nothing."""

Ignore: TypeAlias = str | type[nn.Module] | Iterable[str | type[nn.Module]]


def prunable_weights(
    model: nn.Module, ignore: Ignore = (), operation: str = "prune"
) -> dict[str, nn.Parameter]:
    """Parameter name -> weight of every `PRUNABLE` module, in module order.

    A tied weight or a shared module appears once, under its first name. `ignore` holds module or
    parameter names, regular expressions as "re:pattern" (matched from the start of the name) and
    module types; each covers everything below it, and one alias of a tied weight covers them all.

    Raises ValueError for an entry that matches nothing, and for a weight that is computed from
    other tensors (a parametrisation, weight_norm, torch.nn.utils.prune) or not yet created.
    """
    modules = prunable_modules(model, ignore, operation)
    return {name: plain_weight(name, module, operation) for name, module in modules.items()}


def prunable_modules(
    model: nn.Module, ignore: Ignore = (), operation: str = "prune"
) -> dict[str, nn.Module]:
    """Like `prunable_weights`, but gives the module and accepts weights computed by hooks."""
    if not isinstance(model, nn.Module):
        raise bad_type(operation, "model", "a torch.nn.Module", type(model).__name__, "pass one")
    ignored = ignored_paths(model, ignore, operation)
    same = aliases(model)
    chosen: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, PRUNABLE):
            continue
        name = f"{path}.weight".lstrip(".")
        names = same.get(name, [name])
        if ignored.isdisjoint(step for alias in names for step in paths(alias)):
            identity = id(module._parameters.get("weight", module))
            if identity not in seen:
                chosen[name] = module
            seen.add(identity)
    return chosen


def overlooked(model: nn.Module, ignore: Ignore, operation: str) -> dict[str, int]:
    """Kind of layer -> weights of its matrices, where it is none of `PRUNABLE` and not ignored.

    Bare parameters count with the layer that holds them, e.g. those of nn.MultiheadAttention.
    """
    ignored = ignored_paths(model, ignore, operation)
    chosen = {id(weight) for weight in model.parameters() if weight.dim() < 2}
    chosen |= {id(m._parameters.get("weight")) for m in model.modules() if isinstance(m, PRUNABLE)}
    chosen |= {
        id(w) for m in model.modules() if isinstance(m, _NO_MATRICES) for w in m.parameters()
    }
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(path, recurse=False):
            if id(weight) not in chosen and ignored.isdisjoint(paths(name)):
                kind = type(module).__name__
                found[kind] = found.get(kind, 0) + weight.numel()
                chosen.add(id(weight))
    return found


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """Parameter name -> all names of the same parameter, itself included, in module order."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: names for names in groups.values() for name in names}


def convolution_groups(model: nn.Module) -> dict[str, int]:
    """Weight name -> groups of its convolution, where there are several."""
    return {
        f"{path}.weight".lstrip("."): module.groups
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1
    }


def paths(name: str) -> list[str]:
    """A parameter name and all modules around it: "a.b.weight" -> "", "a", "a.b", "a.b.weight"."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def ignored_paths(model: nn.Module, ignore: Ignore, operation: str) -> set[str]:
    """The module paths and parameter names that the entries of `ignore` match."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known = dict.fromkeys(modules)
    known |= dict.fromkeys(name for name, _ in model.named_parameters(remove_duplicate=False))
    # A parametrised weight is no parameter, yet users call it by this name.
    known |= dict.fromkeys(f"{p}.weight" for p, m in modules.items() if isinstance(m, PRUNABLE))
    found: set[str] = set()
    for entry in [ignore] if isinstance(ignore, str | type) else ignore:
        if isinstance(entry, type) and issubclass(entry, nn.Module):
            found |= {path for path, module in modules.items() if isinstance(module, entry)}
        elif isinstance(entry, str):
            found |= _named(entry, list(known), operation)
        else:
            way_out = "pass a module or parameter name, 're:pattern' or a module type"
            raise bad_type(operation, "ignore", "names or module types", repr(entry), way_out)
    return found


def _named(entry: str, known: list[str], operation: str) -> set[str]:
    """The known names that one string of `ignore` matches; an error if it matches none."""
    try:
        rule = re.compile(
            entry.removeprefix("re:") if entry.startswith("re:") else re.escape(entry)
        )
    except re.error as error:
        raise bad(operation, "ignore", "valid 're:' patterns", repr(entry), str(error)) from error
    match = rule.match if entry.startswith("re:") else rule.fullmatch
    found = {name for name in known if match(name)}
    if not found:
        way_out = suggest(entry, filter(None, known))
        raise bad(operation, "ignore", "names that the model has", repr(entry), way_out)
    return found


def plain_weight(name: str, module: nn.Module, operation: str) -> nn.Parameter:
    """The weight itself, or an error that says how to make it a plain parameter."""
    weight = module._parameters.get("weight")
    if weight is None:
        kind, way_out = _origin(module)
        way_out += ", or add the layer to ignore"
        raise bad(
            operation, f"weight {name!r}", "a plain parameter", f"one made by {kind}", way_out
        )
    if hasattr(weight, "full_tensor"):  # a DTensor, told by what it can do: spares an import
        way_out = "prune before fully_shard; Masks.attach keeps the zeros of a sharded model"
        got = "one sharded over processes"
        raise bad(operation, f"weight {name!r}", "whole in every process", got, way_out)
    if is_lazy(weight):
        way_out = "run the model once on an example input first"
        raise bad(operation, f"weight {name!r}", "created", "a lazy parameter", way_out)
    return weight


def _origin(module: nn.Module) -> tuple[str, str]:
    """What computes the weight of this module, and how to end it."""
    if parametrize.is_parametrized(module, "weight"):
        remove = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        return "a parametrisation", f"call {remove} first"
    if hasattr(module, "weight_mask"):
        remove = "torch.nn.utils.prune.remove(module, 'weight')"
        return "torch.nn.utils.prune", f"take its masks with Masks.from_model, or call {remove}"
    if hasattr(module, "weight_g"):
        return "weight_norm", "call torch.nn.utils.remove_weight_norm(module) first"
    if hasattr(module, "weight_u"):
        return "spectral_norm", "call torch.nn.utils.remove_spectral_norm(module) first"
    return "a hook", "remove the hook first"
