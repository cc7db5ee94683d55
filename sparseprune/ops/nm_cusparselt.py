"""nm_linear by cuSPARSELt, as torch brings it: 2:4 in float16 and bfloat16. Not yet run on a GPU.

The op takes the weight in the library's own form as well (formats/nm_cusparselt.py). Its product is
[rows, tokens], written transposed; tokens are padded to a multiple of 8, limits applied afterwards.
The algorithm is searched at the first call for a number of tokens, so call once before a CUDA graph
is captured. Zeros that a group stores count as in a dense layer, but the library chooses which.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune import backends
from sparseprune.ops import gradients, nm
from sparseprune.ops.nm_checks import check_linear
from sparseprune.ops.products import clamp_
from sparseprune.ops.registration import register

TOKENS = 8
"""They must be a multiple of it (_DTYPE_SHAPE_CONSTRAINTS in torch.sparse)."""
ALIGNMENT = 16
"""Bytes, of all that is read."""

Algorithm = tuple[int, int, int]
"""Its number, in how many parts k is split, and how those are added."""
DEFAULT: Algorithm = (0, 1, -1)
"""What torch takes without a search."""
_found: dict[tuple[Any, ...], Algorithm] = {}

SCHEMA = nm.SCHEMAS["nm_linear"].replace("Tensor places", "Tensor places, Tensor compressed")


def linear(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    compressed: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias); x [..., cols] -> [..., rows]."""
    check_linear(x, values, places, bias, rows, cols, n, m)
    tokens = x.shape[:-1].numel()
    if tokens == 0:
        return x.new_empty(*x.shape[:-1], rows)
    operand = _operand(x.reshape(tokens, cols)).t()
    bias = None if bias is None else _aligned(bias)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        number, parts, mode = _algorithm(compressed, operand, bias)
        y = torch._cslt_sparse_mm(
            compressed, operand, bias=bias, transpose_result=True,
            alg_id=number, split_k=parts, split_k_mode=mode,
        )  # fmt: skip
    return clamp_(y[:tokens], low, high).view(*x.shape[:-1], rows)


def _operand(tokens: Tensor) -> Tensor:
    """Rows of zeros added where the library wants them."""
    missing = -len(tokens) % TOKENS
    return F.pad(tokens, (0, 0, 0, missing)) if missing else _aligned(tokens.contiguous())


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


def _algorithm(compressed: Tensor, operand: Tensor, bias: Tensor | None) -> Algorithm:
    """The fastest for a product of these sizes, measured by the library once."""
    key = operand.device, operand.dtype, len(compressed), *operand.shape, bias is None
    if key not in _found and not torch.cuda.is_current_stream_capturing():
        search = torch._C._cusparselt.mm_search  # type: ignore[attr-defined]
        _found[key] = search(compressed, operand, bias, None, None, True)[:3]
    return _found.get(key, DEFAULT)


def linear_reference(x, values, places, compressed, *others):  # type: ignore[no-untyped-def]
    """The reference of nm_linear, which needs no other form of the weight."""
    return nm.linear_reference(x, values, places, *others)


def _linear_fake(x, values, places, compressed, *others):  # type: ignore[no-untyped-def]
    return nm._linear_fake(x, values, places, *others)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, values, places, _, *others = inputs
    nm._save_linear(ctx, (x, values, places, *others), output)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.linear(ctx, grad, torch.ops.sparseprune.nm_unpack)
    return grad_x, None, None, None, grad_bias, *(None,) * 6


register(
    (backends.CUSPARSELT.namespace,),
    {"nm_linear": SCHEMA},
    {"nm_linear": (linear_reference, _linear_fake)},
    {"nm_linear": (_save, _backward)},
)
if backends.CUSPARSELT.missing is None:
    torch.library.register_kernel(f"{backends.CUSPARSELT.namespace}::nm_linear", "cuda", linear)
