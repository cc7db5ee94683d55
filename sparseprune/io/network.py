"""A whole network as a manifest and named tensors, and back."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.formats import PackedWeight
from sparseprune.io import graph as graphs
from sparseprune.io import layers

Manifest = dict[str, Any]
Tensors = dict[str, Tensor]

CUSTOM = "custom"
"""Type of a module that is not a layer: its forward, if it was called, is in the graph."""
KINDS = ("parameter", "buffer", "temporary", "constant")
"""What a tensor is: a temporary buffer is not in the state_dict; a constant comes from a trace."""


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition(".")
    return parent, name


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """(path, module, the first path of the same module if this is another); parents first."""
    first: dict[int, str] = {}

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
        if id(module) in first:
            yield path, module, first[id(module)]
            return
        first[id(module)] = path
        yield path, module, None
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(f"{path}.{name}" if path else name, child)

    yield from walk("", model)


def own_tensors(path: str, module: nn.Module) -> Iterator[tuple[str, str, Tensor, str]]:
    """(full name, name, tensor, kind) of the tensors that lie directly in a module."""
    prefix = f"{path}." if path else ""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, name, parameter, "parameter"
    for name, buffer in module._buffers.items():
        if buffer is not None:
            kind = "temporary" if name in module._non_persistent_buffers_set else "buffer"
            yield prefix + name, name, buffer, kind


def describe(model: nn.Module) -> tuple[Manifest, Tensors]:
    """What :func:`rebuild` needs. `model` is a copy in eval mode; constants may be put on it."""
    specs: dict[str, layers.Spec] = {}
    has_custom = False
    for path, module, same in modules_of(model):
        try:
            specs[path] = {"same": same} if same is not None else layers.describe(module)
        except ValueError:
            specs[path] = {"type": CUSTOM, "class": type(module).__qualname__}
            has_custom = True
    manifest: Manifest = {"class": type(model).__qualname__, "modules": specs}
    manifest |= {"graph": None, "untraceable": None}
    tensors, manifest["tensors"] = _name_tensors(model)
    if has_custom:  # a forward that is not torch's: that of the whole model is traced
        specs[""] = {"type": CUSTOM, "class": type(model).__qualname__}
        try:
            steps, constants = _trace(model, specs)
            manifest["graph"] = steps
            tensors |= constants
            manifest["tensors"] |= {n: {"kind": "constant"} for n in constants}
        except ValueError as error:
            manifest["untraceable"] = str(error)
    return manifest, tensors


def _trace(model: nn.Module, specs: dict[str, layers.Spec]) -> tuple[list[graphs.Step], Tensors]:
    """The steps of the forward, and the tensors it reads that are neither parameter nor buffer."""
    custom = [path for path, spec in specs.items() if spec.get("type") == CUSTOM]
    whole = {  # a layer is a leaf if nothing inside it needs tracing
        module
        for path, module, same in modules_of(model)
        if same is None
        and not any(c == path or not path or c.startswith(f"{path}.") for c in custom)
    }
    traced = graphs.trace(model, whole)
    known = {full for path, m, _ in modules_of(model) for full, *_ in own_tensors(path, m)}
    constants: Tensors = {}
    for node in traced.nodes:
        if node.op == "get_attr" and str(node.target) not in known:
            constants[str(node.target)] = attrgetter(str(node.target))(model).detach()
    return graphs.to_steps(traced), constants


def _name_tensors(model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """Each tensor once, and what it is; tied ones name the first of them."""
    tensors: Tensors = {}
    entries: dict[str, Any] = {}
    first: dict[Any, str] = {}
    for path, module, same in modules_of(model):
        for full, _, tensor, kind in own_tensors(path, module) if same is None else ():
            key: Any = id(tensor)
            if tensor.numel():  # other objects over the same memory are tied as well
                key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, kind
            if key in first:
                entries[full] = {"same": first[key]}
                continue
            first[key] = full
            tensors[full] = tensor.detach()
            entries[full] = {"kind": kind, "requires_grad": tensor.requires_grad}
    return tensors, entries


def sparsities(model: nn.Module) -> dict[str, float]:
    """Share of zeros in the weight of every layer that has one of two dimensions or more."""
    found: dict[str, float] = {}
    for path, module, same in modules_of(model):
        weight = getattr(module, "weight", None)
        if same is not None or isinstance(module, PackedWeight):
            continue
        if isinstance(weight, PackedWeight):
            found[path] = 1 - weight.nonzeros / max(1, weight.rows * weight.cols)
        elif isinstance(weight, Tensor) and weight.dim() > 1:
            found[path] = 1 - int(torch.count_nonzero(weight)) / max(1, weight.numel())
    return found


def restore_tensors(manifest: Manifest, tensors: Tensors) -> Tensors:
    """Every name, also of tied tensors, with its Parameter or buffer; tied ones are one object.

    Raises:
        ValueError: entries and tensors that do not belong together.
    """
    entries = manifest["tensors"]
    named = {n for n, e in entries.items() if "same" not in e}
    if named != tensors.keys():
        odd = sorted(named ^ tensors.keys())[:5]
        raise ValueError(f"the tensors {odd} are missing, or not in the manifest")
    restored: Tensors = {}
    for name in named:
        kind, grad = entries[name]["kind"], entries[name].get("requires_grad", False)
        if kind not in KINDS or type(grad) is not bool:
            raise ValueError(f"tensor {name!r} is a {kind!r}")
        tensor = tensors[name]
        restored[name] = nn.Parameter(tensor, grad) if kind == "parameter" else tensor
        if kind != "parameter" and grad:
            tensor.requires_grad_()
    for name, entry in entries.items():
        if "same" in entry:
            if entry["same"] not in named:
                raise ValueError(f"tensor {name!r} is said to be {entry['same']!r}, which is none")
            restored[name] = restored[entry["same"]]
    return restored


class Builder:
    """Makes each module once, children before parents."""

    def __init__(self, manifest: Manifest, tensors: Tensors) -> None:
        self.specs: dict[str, layers.Spec] = manifest["modules"]
        self.entries, self.tensors = manifest["tensors"], tensors
        self.made: dict[str, nn.Module] = {}
        self.open: set[str] = set()  # a module inside itself would never end
        self.children: dict[str, list[str]] = {path: [] for path in self.specs}
        self.own: dict[str, dict[str, str]] = {path: {} for path in self.specs}
        for path in self.specs:
            if path:
                self.children[_split(path)[0]].append(path)
        for full in self.entries:
            parent, name = _split(full)
            self.own[parent][name] = full

    def build(self, path: str) -> nn.Module:
        """The module at a path, with all that is below it."""
        spec = self.specs[path]
        if "same" in spec:
            path, spec = spec["same"], self.specs[spec["same"]]
        if path in self.open or "same" in spec:
            raise ValueError(f"module {path!r} is said to contain itself")
        if path not in self.made:
            self.open.add(path)
            children = {_split(child)[1]: self.build(child) for child in self.children[path]}
            self.made[path] = self._make(path, spec, children)
            self.open.discard(path)
        return self.made[path]

    def _make(self, path: str, spec: layers.Spec, children: dict[str, nn.Module]) -> nn.Module:
        own = {name: self.tensors[full] for name, full in self.own[path].items()}
        if spec.get("type") == CUSTOM:
            module = nn.Module()
            for name, child in children.items():
                module.add_module(name, child)
        else:
            module = layers.build(spec, children, own)
        for _, name, expected, _ in list(own_tensors(path, module)):
            if name not in own or own[name].shape != expected.shape:
                got = tuple(own[name].shape) if name in own else "none"
                raise ValueError(
                    f"tensor {name!r} of {spec['type']} {path!r} must have shape "
                    f"{tuple(expected.shape)}, got {got}"
                )
        for name, full in self.own[path].items():
            place(module, name, self.tensors[full], self._kind(full))
        return module

    def _kind(self, full: str) -> str:
        entry = self.entries[full]
        return str(self.entries[entry["same"]]["kind"] if "same" in entry else entry["kind"])


def place(module: nn.Module, name: str, tensor: Tensor, kind: str) -> None:
    """Put a tensor into a module, over the one of that name if there is one."""
    if name in module._parameters or name in module._buffers:
        setattr(module, name, tensor)  # torch's recurrent layers watch this
    elif kind == "parameter":
        module.register_parameter(name, tensor)  # type: ignore[arg-type]
    else:
        module.register_buffer(name, tensor, persistent=kind == "buffer")


def rebuild(manifest: Manifest, tensors: Tensors) -> nn.Module:
    """The network from the manifest alone, in eval mode.

    Raises:
        ValueError: anything in the manifest that is not allowed or does not fit.
    """
    restored = restore_tensors(manifest, tensors)
    model = Builder(manifest, restored).build("")
    if manifest["graph"] is not None:
        network = graphs.network_class(graphs.from_steps(manifest["graph"], model))
        if type(model) is not nn.Module:
            raise ValueError("a layer of torch.nn has no steps of its own")
        model.__class__ = network  # the plain holder of the layers gets its forward
    elif type(model) is nn.Module:
        raise ValueError("there are no steps")
    return model.eval()
