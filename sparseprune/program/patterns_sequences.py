"""Tokens: normalisation, factors, attention between them, and images as their pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.steps import Activation, Depthwise, Triple, Window
from sparseprune.program.steps_sequences import Attention, Norm, Picture, Pixels, Rotary


def layer_norm(call: Call, m: nn.LayerNorm | nn.RMSNorm, input: Any) -> Lowered | None:
    """Over the last dimension, with a weight."""
    if len(m.normalized_shape) != 1 or m.weight is None or m.weight.dtype != torch.float32:
        return None
    epsilon = torch.finfo(torch.float32).eps if m.eps is None else m.eps
    bias = getattr(m, "bias", None)

    def emit(b: Builder, x: list[int]) -> int:
        first = b.use((f"{call.path}.weight", m.weight), (f"{call.path}.bias", bias))
        return b.add(Norm, x=x[0], tensors=first, channels=m.normalized_shape[0],
                     has_bias=int(bias is not None), centred=int(isinstance(m, nn.LayerNorm)),
                     epsilon=float(epsilon))  # fmt: skip

    return Lowered((input,), emit, "tokens", "tokens")


def norm_function(root: bool) -> Any:
    """F.layer_norm, or F.rms_norm, with parameters of the model."""

    def pattern(call: Call, input: Any, normalized_shape: Any, weight: Any = None, *more: Any,
                **named: Any) -> Lowered | None:  # fmt: skip
        names = ("eps",) if root else ("bias", "eps")
        given = {**dict(zip(names, more, strict=False)), **named}
        bias, epsilon = given.get("bias"), given.get("eps", None if root else 1e-5)
        shape = call.shapes(weight)
        if not _is_parameter(weight) or shape is None or len(shape[0]) != 1:
            return None
        if bias is not None and not _is_parameter(bias):
            return None
        if list(normalized_shape) != list(shape[0]) or type(epsilon) not in (float, type(None)):
            return None
        epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon

        def emit(b: Builder, x: list[int]) -> int:
            used = [(str(n.target), n) for n in (weight, bias) if n is not None]
            return b.add(Norm, x=x[0], tensors=b.use(*used), channels=shape[0][0],
                         has_bias=int(bias is not None), centred=int(not root),
                         epsilon=epsilon)  # fmt: skip

        return Lowered((input,), emit, "tokens", "tokens")

    return pattern


def _is_parameter(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def factors(call: Call, input: Any, other: Any) -> Lowered | None:
    """Tokens times a parameter: a factor for every channel."""
    for x, by in ((input, other), (other, input)):
        shapes, shape = call.shapes(x), call.shapes(by)
        if not _is_parameter(by) or _is_parameter(x) or shapes is None or shape is None:
            continue
        if len(shape[0]) == 1 and len(shapes[0]) > 1 and shapes[0][-1] == shape[0][0]:
            return _factors(x, by, shape[0][0])
    return None


def _factors(x: Any, by: Any, channels: int) -> Lowered:
    def emit(b: Builder, v: list[int]) -> int:
        return b.add(Depthwise, x=v[0], residual=-1, tensors=b.use((str(by.target), by)),
                     channels=channels, multiplier=1, has_bias=0, window=Window(),
                     activation=Activation())  # fmt: skip

    return Lowered((x,), emit, "tokens", "tokens")


def permute(call: Call, input: Any, *dims: Any) -> Lowered | None:
    """The channels of an image last, or those of its pixels first."""
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if call.rank(input) != 4:
        return None
    order = tuple(d % 4 for d in order if type(d) is int)
    if order == (0, 2, 3, 1):
        return Lowered((input,), lambda b, x: b.add(Pixels, x=x[0], dims=2), "image", "tokens")
    if order == (0, 3, 1, 2):
        return Lowered((input,), lambda b, x: b.add(Picture, x=x[0], dims=2), "tokens", "image")
    return None


def rotary(call: Call, x: Any, cos: Any, sin: Any, first: int, stride: int, heads: int,
           head: int, pairs: bool) -> Lowered | None:  # fmt: skip
    """What sparseprune.program.rotary has found."""
    angles = call.shapes(cos)
    if angles is None:
        return None
    turned = angles[0][-1]

    def emit(b: Builder, v: list[int]) -> int:
        return b.add(Rotary, x=v[0], cos=v[1], sin=v[2], first=first, stride=stride, heads=heads,
                     head=head, turned=turned, pairs=int(pairs))  # fmt: skip

    return Lowered((x, cos, sin), emit, "tokens", "tokens")


def attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    first: Triple,
    strides: Triple,
    heads: int,
    head: int,
    group: int,
    causal: bool,
    scale: float,
) -> Lowered:
    """What sparseprune.program.attention has found."""

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Attention, x=x[0], key=x[1], value=x[2], mask=[*x, -1][3],
                     first=tuple(first), strides=tuple(strides), heads=heads, head=head,
                     group=group, causal=int(causal), scale=float(scale))  # fmt: skip

    reads = (query, key, value) if mask is None else (query, key, value, mask)
    return Lowered(reads, emit, "tokens", "tokens")
