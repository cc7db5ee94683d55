"""Normalisation of tokens, and attention between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.steps import Triple
from sparseprune.program.steps_sequences import Attention, Norm


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


def attention(
    call: Call,
    query: Any,
    key: Any,
    value: Any,
    first: Triple,
    heads: int,
    head: int,
    causal: bool,
    scale: float,
) -> Lowered:
    """What sparseprune.program.attention has found."""

    def emit(b: Builder, x: list[int]) -> int:
        return b.add(Attention, x=x[0], key=x[1], value=x[2], first=tuple(first), heads=heads,
                     head=head, causal=int(causal), scale=float(scale))  # fmt: skip

    return Lowered((query, key, value), emit, "tokens", "tokens")
