"""The saved layers put into a given model: for a forward that only its class knows."""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.copying import copy_settled, copy_with
from sparseprune.equivalents import equivalent
from sparseprune.io import layers
from sparseprune.io.allowed import LAYER_NAMES
from sparseprune.io.network import (
    Builder,
    Manifest,
    Tensors,
    modules_of,
    own_tensors,
    place,
    restore_tensors,
)
from sparseprune.io.programs import take_off
from sparseprune.nn import SparseConv, SparseLinear

IDENTITY = layers.describe(nn.Identity())["type"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = {layers.ATTENTION, layers.LINEAR, *layers.CONVS, *(LAYER_NAMES[kind] for kind in DENSE)}
"""Names in a file of what equivalents are made of."""


def load_onto(model: nn.Module, manifest: Manifest, tensors: Tensors) -> nn.Module:
    """A copy of `model` with the packed layers in place of dense ones, and all saved tensors.

    Raises:
        ValueError: another class, or layers and tensors that differ in name or shape.
    """
    copy = copy_settled(model).eval()
    take_off(copy)
    if type(copy).__qualname__ != manifest["class"]:
        raise ValueError(
            f"the file holds a {manifest['class']}, the given model is a {type(copy).__qualname__}"
        )
    copy = _as_layers(copy, manifest)
    restored = restore_tensors(manifest, tensors)
    builder = Builder(manifest, restored)
    sparse = {
        _module(copy, path): _instead_of(_module(copy, path), builder.build(path), path)
        for path, spec in manifest["modules"].items()
        if spec.get("type") in (layers.LINEAR, *layers.CONVS)
    }
    copy = copy_with(copy, sparse) if sparse else copy
    _fold(copy, manifest, restored)
    for path, spec in manifest["modules"].items():
        if "same" in spec:
            _share(copy, path, spec["same"])
    _fill(copy, manifest, restored)
    return copy.eval()


def _as_layers(model: nn.Module, manifest: Manifest) -> nn.Module:
    """What convert() took for layers that it is equivalent to is those layers here too."""
    made = {
        module: layer
        for path, module in model.named_modules()
        if manifest["modules"].get(path, {}).get("type") in LAYERS
        and (layer := equivalent(module)) is not None
    }
    return copy_with(model, made) if made else model


def _instead_of(dense: nn.Module, sparse: nn.Module, path: str) -> nn.Module:
    """The sparse layer on the device of the dense one, whose weight must have its shape."""
    shape: tuple[int, ...] = ()
    if isinstance(sparse, SparseLinear) and isinstance(dense, nn.Linear):
        shape = (sparse.out_features, sparse.in_features)
    if isinstance(sparse, SparseConv) and isinstance(dense, sparse.dense):
        shape = (sparse.out_channels, sparse.in_channels // sparse.groups, *sparse.kernel_size)
    weight = getattr(dense, "weight", None)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else "none"
        raise ValueError(
            f"layer {path!r} is a {type(sparse).__name__} with a weight {shape} in the file, "
            f"a {type(dense).__name__} with a weight {got} in the given model"
        )
    return sparse if weight.is_meta else sparse.to(weight.device)


def _fold(model: nn.Module, manifest: Manifest, restored: Tensors) -> None:
    """What convert() folded into the layer before is an Identity here too; that has a bias now."""
    for path, spec in manifest["modules"].items():
        if spec.get("type") == IDENTITY and isinstance(_module(model, path), NORMS):
            model.set_submodule(path, nn.Identity())
    for full in restored:
        path, _, name = full.rpartition(".")
        layer = _module(model, path) if name == "bias" else None
        if isinstance(layer, DENSE) and layer.bias is None:
            rows = layer.weight.new_zeros(len(layer.weight))
            layer.register_parameter("bias", nn.Parameter(rows))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the given model has no layer {path!r}") from error


def _share(model: nn.Module, path: str, same: str) -> None:
    """One module under two names in the file is one module here as well."""
    module, other = _module(model, same), _module(model, path)
    if module is other:
        return
    sparse = isinstance(module, (SparseLinear, SparseConv))
    if type(module) is not type(other) and not sparse:
        raise ValueError(f"layers {path!r} and {same!r} are one in the file, of two types here")
    parent, _, name = path.rpartition(".")
    setattr(_module(model, parent), name, module)


def _fill(model: nn.Module, manifest: Manifest, restored: Tensors) -> None:
    entries = manifest["tensors"]
    wanted = {n: t for n, t in restored.items() if entries[n].get("kind") != "constant"}
    owners = {
        full: (module, name, tensor, kind)
        for path, module, same in modules_of(model)
        if same is None
        for full, name, tensor, kind in own_tensors(path, module)
    }
    if wanted.keys() != owners.keys():
        missing, extra = sorted(owners.keys() - wanted), sorted(wanted.keys() - owners.keys())
        raise ValueError(
            f"the file has no tensors {missing[:5]}, the given model has no {extra[:5]}"
        )
    for full, (module, name, tensor, kind) in owners.items():
        new = wanted[full]
        if new.shape != tensor.shape:
            raise ValueError(
                f"tensor {full!r} is {tuple(new.shape)} in the file, {tuple(tensor.shape)} in the "
                f"given model"
            )
        if isinstance(new, nn.Parameter) != (kind == "parameter"):
            raise ValueError(f"tensor {full!r} is a {entries[full].get('kind')}, not a {kind}")
        if not tensor.is_meta and tensor.device != new.device:
            new.data = new.data.to(tensor.device)
        place(module, name, new, kind)
