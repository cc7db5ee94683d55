"""Attention in ONNX files of opsets for which torch's exporter has none: as matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.onnx import register_custom_op_symbolic
from torch.onnx.symbolic_helper import parse_args

from sparseprune.errors import bad


def register(opset: int) -> None:
    """From now on files of that opset can have attention; newer ones keep the exporter's own."""
    register_custom_op_symbolic("aten::scaled_dot_product_attention", products, opset)


@parse_args("v", "v", "v", "v", "f", "b", "v", "b")
def products(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    dropout: float,
    causal: bool,
    scale: Any,
    grouped: bool,
) -> Any:
    """softmax(Q K^T / sqrt(d)) V, the causal mask as a constant."""
    options = {"mask": not mask.node().mustBeNone(), "scale": not scale.node().mustBeNone()}
    options |= {"dropout_p": dropout > 0, "enable_gqa": grouped}
    if given := ", ".join(name for name, is_given in options.items() if is_given):
        raise bad("peers", "attention", "without options", given, "write it as matrix products")
    sizes = key.type().sizes()
    axes = [*range(len(sizes) - 2), len(sizes) - 1, len(sizes) - 2]
    scores = g.op("MatMul", query, g.op("Transpose", key, perm_i=axes))
    scores = g.op("Div", scores, constant(g, torch.tensor(math.sqrt(sizes[-1]))))
    if causal:
        future = torch.full((query.type().sizes()[-2], sizes[-2]), -torch.inf).triu(1)
        scores = g.op("Add", scores, constant(g, future))
    return g.op("MatMul", g.op("Softmax", scores, axis_i=-1), value)


def constant(g: Any, tensor: torch.Tensor) -> Any:
    """A value of the graph that holds `tensor`."""
    return g.op("Constant", value_t=tensor)
