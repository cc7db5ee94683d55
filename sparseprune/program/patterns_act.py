"""Activations: how each form that torch has of them becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.steps import Activation, Add

RELU = Activation("clamp", 0.0)
RELU6 = Activation("clamp", 0.0, 6.0)
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""Klambauer et al., "Self-normalizing neural networks" (2017)."""
SELU = Activation("elu", SELU_SCALE * SELU_ALPHA, SELU_SCALE)


def apply(input: Any, activation: Activation) -> Lowered:
    """An activation as a step of its own, which is joined with the one before it where possible."""

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Add, x=x[0], residual=-1, activation=activation)

    return Lowered((input,), emit)


def fixed(activation: Activation) -> Callable[..., Lowered]:
    """The pattern of an activation without parameters."""

    def pattern(call: Call, input: Any, inplace: bool = False) -> Lowered:
        return apply(input, activation)

    return pattern


def clamp(call: Call, input: Any, min: Any = None, max: Any = None) -> Lowered | None:
    """Between two numbers, of which one may be missing."""
    numbers = [(min, -math.inf), (max, math.inf)]
    if not all(v is None or type(v) in (int, float) for v, _ in numbers):
        return None
    low, high = (missing if v is None else float(v) for v, missing in numbers)
    return apply(input, Activation("clamp", low, high))


def clamp_min(call: Call, input: Any, min: Any) -> Lowered | None:
    """At least a number."""
    return clamp(call, input, min)


def hardtanh(call: Call, input: Any, min_val: Any = -1.0, max_val: Any = 1.0,
             inplace: bool = False) -> Lowered | None:  # fmt: skip
    """Between two numbers."""
    return clamp(call, input, min_val, max_val)


def leaky(call: Call, input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Any:
    """x where it is positive, else a share of it."""
    if type(negative_slope) not in (int, float):
        return None
    return apply(input, Activation("leaky", float(negative_slope)))


def elu(call: Call, input: Any, alpha: Any = 1.0, inplace: bool = False) -> Any:
    """x where it is positive, else alpha (e^x - 1)."""
    if type(alpha) not in (int, float):
        return None
    return apply(input, Activation("elu", float(alpha), 1.0))


def celu(call: Call, input: Any, alpha: Any = 1.0, inplace: bool = False) -> Any:
    """As elu for alpha = 1; programs stretch no exponents."""
    return elu(call, input) if alpha == 1 else None


def gelu(call: Call, input: Any, approximate: str = "none") -> Lowered | None:
    """x times the normal distribution function of x, or nearly so."""
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    return apply(input, Activation(kinds[approximate])) if approximate in kinds else None


_PLAIN = {
    "relu": fixed(RELU),
    "relu6": fixed(RELU6),
    "selu": fixed(SELU),
    **{n: fixed(Activation(n))
       for n in ("silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "mish")},
}  # fmt: skip

ACTIVATIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.ReLU: lambda call, m, input: apply(input, RELU),
    nn.ReLU6: lambda call, m, input: apply(input, RELU6),
    nn.Hardtanh: lambda call, m, input: clamp(call, input, m.min_val, m.max_val),
    nn.LeakyReLU: lambda call, m, input: leaky(call, input, m.negative_slope),
    nn.ELU: lambda call, m, input: elu(call, input, m.alpha),
    nn.CELU: lambda call, m, input: celu(call, input, m.alpha),
    nn.SELU: lambda call, m, input: apply(input, SELU),
    nn.Mish: lambda call, m, input: apply(input, Activation("mish")),
    nn.SiLU: lambda call, m, input: apply(input, Activation("silu")),
    nn.GELU: lambda call, m, input: gelu(call, input, m.approximate),
    nn.Hardswish: lambda call, m, input: apply(input, Activation("hardswish")),
    nn.Hardsigmoid: lambda call, m, input: apply(input, Activation("hardsigmoid")),
    nn.Sigmoid: lambda call, m, input: apply(input, Activation("sigmoid")),
    nn.Tanh: lambda call, m, input: apply(input, Activation("tanh")),
}
"""Module -> pattern."""

ACTIVATION_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{getattr(F, name): pattern for name, pattern in _PLAIN.items()},
    **{getattr(torch, name): _PLAIN[name] for name in ("relu", "selu", "sigmoid", "tanh")},
    **{getattr(torch, f"{name}_"): _PLAIN[name] for name in ("relu", "sigmoid", "tanh")},
    F.hardtanh: hardtanh,
    F.hardtanh_: hardtanh,
    F.leaky_relu: leaky,
    F.leaky_relu_: leaky,
    F.elu: elu,
    F.elu_: elu,
    F.celu: celu,
    F.gelu: gelu,
    torch.clamp: clamp,
    torch.clamp_: clamp,
    torch.clip: clamp,
    torch.clamp_min: clamp_min,
}
"""Function -> pattern."""

ACTIVATION_METHODS: dict[str, Callable[..., Any]] = {
    **{name + tail: _PLAIN[name] for name in ("relu", "sigmoid", "tanh") for tail in ("", "_")},
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), clamp_min),
}
"""Method -> pattern."""
