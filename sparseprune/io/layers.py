"""One layer as data (its type and constructor arguments) and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.formats import (
    WEIGHTS,
    PackedWeight,
    bitmask_check,
    block_check,
    csr_check,
    nm_check,
    sell_check,
)
from sparseprune.formats.base import Clamp
from sparseprune.io.allowed import CONTAINERS, LAYER_NAMES, LAYERS
from sparseprune.io.values import decode, decode_setting, encode, encode_setting
from sparseprune.nn import (
    MultiheadAttention,
    SparseConv,
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseLinear,
)
from sparseprune.nn.attention import PROJECTIONS
from sparseprune.program.steps import PADDINGS

Spec = dict[str, Any]

LINEAR, PACKED = "sparseprune.SparseLinear", "sparseprune."
ATTENTION = PACKED + MultiheadAttention.__name__
CONVS: dict[str, type[SparseConv]] = {
    PACKED + cls.__name__: cls for cls in (SparseConv1d, SparseConv2d, SparseConv3d)
}
"""Name in a file -> packed convolution."""
CHECKS = {
    "csr": (csr_check.check, csr_check.check_groups),
    "bitmask": (bitmask_check.check, bitmask_check.check_groups),
    "block": (block_check.check, block_check.check_groups),
    "nm": (nm_check.check, nm_check.check_groups),
    "sell": (sell_check.check, sell_check.check_groups),
}
"""Stem -> what proves a packed weight safe, alone and in a convolution. Others are not loaded."""

_WINDOW = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "clamp")
_HEADS = {"num_heads": int, "dropout": float, "batch_first": bool}
_ATTENTION = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
_RNN = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional")  # fmt: skip
_FEED_FORWARD = ("linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2")
COMPOSITES: dict[type[nn.Module], tuple[tuple[str, ...], tuple[str, ...]]] = {
    nn.TransformerEncoderLayer: (
        ("norm_first", "activation_relu_or_gelu", "activation"),
        ("self_attn", *_FEED_FORWARD),
    ),
    nn.TransformerDecoderLayer: (
        ("norm_first", "activation"),
        ("self_attn", "multihead_attn", *_FEED_FORWARD, "norm3", "dropout3"),
    ),
    nn.TransformerEncoder: (
        ("num_layers", "enable_nested_tensor", "use_nested_tensor", "mask_check"),
        ("layers", "norm"),
    ),
    nn.TransformerDecoder: (("num_layers",), ("layers", "norm")),
    nn.Transformer: (("d_model", "nhead", "batch_first"), ("encoder", "decoder")),
}
"""Layers made of layers, whose constructors do not take what they keep: attributes, children."""
_OPTIONAL = {"norm", "activation"}


def describe(module: nn.Module) -> Spec:
    """Type and arguments of one layer, without its children and tensors.

    Raises:
        ValueError: not a layer of torch.nn or sparseprune, or changed beyond what data can say.
    """
    _check_untouched(module)
    if isinstance(module, PackedWeight):
        return {"type": PACKED + module.stem, "arguments": module.spec()}
    if type(module) is SparseLinear:
        return {"type": LINEAR, "arguments": {"clamp": encode(module.clamp)}}
    if (conv := PACKED + type(module).__name__) in CONVS and type(module) is CONVS[conv]:
        return {"type": conv, "arguments": {n: encode(getattr(module, n)) for n in _WINDOW}}
    if type(module) is MultiheadAttention:
        return {"type": ATTENTION, "arguments": {n: encode(getattr(module, n)) for n in _HEADS}}
    name = LAYER_NAMES.get(type(module))
    if name is None:
        raise ValueError(f"{type(module).__qualname__} is not a layer of torch.nn")
    if type(module) in CONTAINERS:
        return {"type": name}
    if type(module) in COMPOSITES:
        attributes = {n: vars(module)[n] for n in COMPOSITES[type(module)][0] if n in vars(module)}
        return {"type": name, "attributes": {n: encode_setting(v) for n, v in attributes.items()}}
    spec = {"type": name, "arguments": {n: encode(v) for n, v in _arguments(module).items()}}
    changed = _changed(module, _construct(spec))
    return {**spec, "attributes": changed} if changed else spec


def _check_untouched(module: nn.Module) -> None:
    """Hooks and replaced methods are code, which a file does not hold."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"a {type(module).__name__} has forward hooks")
    if "forward" in vars(module):
        raise ValueError(f"a {type(module).__name__} has a forward method of its own")


def _arguments(module: nn.Module) -> dict[str, Any]:
    """What to pass to the constructor: the attributes that are named as its parameters."""
    if isinstance(module, nn.MultiheadAttention):
        found = {
            "bias": module.in_proj_bias is not None,
            "add_bias_kv": module.bias_k is not None,
        }
        return {n: getattr(module, n) for n in _ATTENTION} | found
    if isinstance(module, nn.RNNBase):
        own = {nn.LSTM: ("proj_size",), nn.RNN: ("nonlinearity",)}.get(type(module), ())
        return {n: getattr(module, n) for n in (*_RNN, *own)}
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        if name == "bias":
            value = getattr(module, "bias", None)
            arguments[name] = value if isinstance(value, bool) else value is not None
        elif hasattr(module, name):
            arguments[name] = getattr(module, name)
        elif parameter.default is parameter.empty:
            raise ValueError(f"{type(module).__name__} does not keep its argument {name!r}")
    return arguments


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a user may have changed after construction."""
    return {n: v for n, v in vars(module).items() if not n.startswith("_") and n != "training"}


def _changed(module: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    """Attributes with other values than the constructor gives them."""
    now = _settings(module)
    return {
        name: encode_setting(now[name])
        for name, value in _settings(fresh).items()
        if name in now
        and now[name] is not value
        and encode_setting(now[name]) != encode_setting(value)
    }


def _construct(spec: Spec) -> nn.Module:
    """The layer without values: on the meta device nothing is allocated or drawn at random."""
    with torch.device("meta"):
        return LAYERS[spec["type"]](**{n: decode(v) for n, v in spec["arguments"].items()})


def build(
    spec: Spec, children: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The layer that a spec describes. Its own tensors are put in place by the caller.

    Raises:
        ValueError: a type that is not allowed, or parts that do not fit it.
    """
    kind = spec.get("type")
    if not isinstance(kind, str):
        raise ValueError(f"layer type {kind!r} is not a name")
    if kind == LINEAR:
        return SparseLinear(*_packed(children, tensors), _clamp(spec))
    if kind == ATTENTION:
        return _attention(spec, children)
    if kind in CONVS:
        return _sparse_conv(CONVS[kind], spec, *_packed(children, tensors))
    if kind.removeprefix(PACKED) in CHECKS and kind.startswith(PACKED):
        return _packed_weight(kind.removeprefix(PACKED), spec, tensors)
    if kind not in LAYERS:
        raise ValueError(f"layer type {kind!r} is not allowed")
    cls = LAYERS[kind]
    if cls in CONTAINERS:
        container = cls()
        for name, child in children.items():
            container.add_module(name, child)
        return container
    if cls in COMPOSITES:
        return _composite(cls, spec, children)
    if issubclass(cls, nn.RNNBase) and not 0 < spec["arguments"]["num_layers"] <= len(tensors):
        raise ValueError(
            f"{kind} of {spec['arguments']['num_layers']} layers without their tensors"
        )
    module = _construct(spec)
    _set_attributes(module, spec)
    if children.keys() != module._modules.keys():
        raise ValueError(f"{kind} has layers {sorted(children)}, not {sorted(module._modules)}")
    for name, child in children.items():
        setattr(module, name, child)
    return module


def _set_attributes(module: nn.Module, spec: Spec) -> None:
    known = _settings(module)
    for name, value in spec.get("attributes", {}).items():
        if name not in known:
            raise ValueError(f"{spec['type']} has no attribute {name!r}")
        setattr(module, name, decode_setting(value))


def _composite(cls: type[nn.Module], spec: Spec, children: Mapping[str, nn.Module]) -> nn.Module:
    attributes, names = COMPOSITES[cls]
    given = {n: decode_setting(v) for n, v in spec["attributes"].items()}
    missing = {*attributes, *names} - given.keys() - children.keys() - _OPTIONAL
    extra = (given.keys() - set(attributes)) | (children.keys() - set(names) - {"activation"})
    if missing or extra:
        raise ValueError(
            f"{spec['type']} lacks {sorted(missing)} or should not have {sorted(extra)}"
        )
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    absent = {n: None for n in (*attributes, *names) if n not in given and n not in children}
    for name, value in {**given, **children, **absent}.items():  # children in the file's order
        setattr(module, name, value)
    return module


def _packed(
    children: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> tuple[PackedWeight, Tensor | None]:
    """Weight and bias of a sparse layer."""
    weight, bias = children.get("weight"), tensors.get("bias")
    if len(children) != 1 or not isinstance(weight, PackedWeight):
        raise ValueError(f"a sparse layer needs one packed weight, it has {sorted(children)}")
    if bias is not None and tuple(bias.shape) != (weight.rows,):
        raise ValueError(f"a sparse layer of {weight.rows} outputs has a bias {tuple(bias.shape)}")
    return weight, bias


def _packed_weight(stem: str, spec: Spec, tensors: Mapping[str, Tensor]) -> PackedWeight:
    try:
        make: Callable[..., PackedWeight] = WEIGHTS[stem]
        weight = make(**spec["arguments"], **tensors)
    except TypeError as error:
        raise ValueError(f"packed weight {stem!r}: {error}") from error
    CHECKS[stem][0](weight)
    return weight.use()


def _attention(spec: Spec, children: Mapping[str, nn.Module]) -> MultiheadAttention:
    heads = {n: decode(v) for n, v in spec["arguments"].items()}
    linear = all(type(child) in (nn.Linear, SparseLinear) for child in children.values())
    fits = {n: type(v) for n, v in heads.items()} == _HEADS and 0 <= heads["dropout"] <= 1
    if not fits or not linear or children.keys() != set(PROJECTIONS):
        raise ValueError(f"an attention of {sorted(children)} with {str(heads)[:200]}")
    return MultiheadAttention(**children, **heads)  # type: ignore[arg-type]


def _clamp(spec: Spec) -> Clamp:
    clamp = decode(spec["arguments"]["clamp"])
    fits = type(clamp) is tuple and len(clamp) == 2
    if not fits or any(v is not None and type(v) is not float for v in clamp):
        raise ValueError(f"a sparse layer with clamp {str(clamp)[:200]}")
    return clamp  # type: ignore[no-any-return]


def _sparse_conv(
    cls: type[SparseConv], spec: Spec, weight: PackedWeight, bias: Tensor | None
) -> SparseConv:
    name, dims = cls.__name__, cls.dims
    window = {n: decode(v) for n, v in spec["arguments"].items()}
    lengths = {"kernel_size": dims, "stride": dims, "padding": 2 * dims, "dilation": dims}
    fits = window.keys() == set(_WINDOW) and type(window["groups"]) is int and all(
        type(window[n]) is tuple and len(window[n]) == k and all(type(v) is int for v in window[n])
        for n, k in lengths.items()
    )  # fmt: skip
    if not fits or min(window["padding"]) < 0:
        raise ValueError(f"{name} with {str(window)[:200]}")
    _clamp(spec)
    sizes = (*window["kernel_size"], *window["stride"], *window["dilation"])
    groups = window["groups"]
    if min(*sizes, groups) < 1 or max(*sizes, *window["padding"], groups) >= 2**31:
        raise ValueError(f"{name} with {str(window)[:200]}")
    if weight.cols % prod(window["kernel_size"]) or weight.rows % groups:
        raise ValueError(f"{name} of {weight.rows} x {weight.cols} with {str(window)[:200]}")
    if window["padding_mode"] not in PADDINGS:
        raise ValueError(f"{name} with padding_mode {window['padding_mode']!r}")
    CHECKS[weight.stem][1](weight, groups)
    return cls(weight, bias, **window)
