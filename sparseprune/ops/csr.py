"""csr ops: schema, fake kernel, reference and gradient. Native code adds only kernels.

A pruned weight contributes nothing to the output, even where the input is NaN or infinite
(a dense layer would compute 0 * inf = NaN there).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats.csr import entries, unpack
from sparseprune.ops import gradients
from sparseprune.ops.csr_checks import check_conv2d, check_linear
from sparseprune.ops.products import clamp_, multiply
from sparseprune.ops.registration import register
from sparseprune.ops.windows import output_size

_PACKED = "Tensor values, Tensor columns, Tensor counts, Tensor starts"
_SIZES = "int rows, int cols, int block"
_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"

_CLAMP = "float? low=None, float? high=None"

SCHEMAS = {
    "csr_linear": f"(Tensor x, {_PACKED}, Tensor? bias, {_SIZES}, {_CLAMP}) -> Tensor",
    "csr_conv2d": f"(Tensor x, {_PACKED}, Tensor? bias, {_SIZES}, {_WINDOW}, {_CLAMP}) -> Tensor",
    "csr_unpack": f"({_PACKED}, {_SIZES}) -> Tensor",
}


def linear_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias) over the nonzeros of W alone; x [..., cols] -> [..., rows]."""
    check_linear(x, values, columns, counts, starts, bias, rows, cols, block)
    row, column = entries(columns, counts, starts, rows, cols, block)
    tokens = x.reshape(x.shape[:-1].numel(), cols).float()
    y = multiply(tokens, values.float(), row, column, rows)
    if bias is not None:
        y += bias
    return clamp_(y, low, high).to(x.dtype).view(*x.shape[:-1], rows)


def conv2d_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    block: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution as a product with the unfolded input, over the nonzeros of W alone."""
    check_conv2d(x, values, columns, counts, starts, bias, rows, cols, block,
                 kernel_size, stride, padding, dilation, groups)  # fmt: skip
    height, width = output_size(x, kernel_size, stride, padding, dilation)
    if x.shape[0] == 0:
        return x.new_empty(0, rows, height, width)
    row, column = entries(columns, counts, starts, rows, cols, block)
    sizes = (tuple(pair) for pair in (kernel_size, dilation, padding, stride))
    patches = F.unfold(x, *sizes)  # [batch, groups * cols, pixels]
    patches = patches.transpose(1, 2).reshape(-1, groups * cols)
    column = column + row // max(1, rows // groups) * cols
    y = multiply(patches, values, row, column, rows)
    if bias is not None:
        y += bias
    return (
        clamp_(y, low, high)
        .view(x.shape[0], height * width, rows)
        .transpose(1, 2)
        .reshape(x.shape[0], rows, height, width)
        .contiguous()
    )


def _linear_fake(x, values, columns, counts, starts, bias, rows, cols, block, low=None, high=None):  # type: ignore[no-untyped-def]
    check_linear(x, values, columns, counts, starts, bias, rows, cols, block)
    return x.new_empty(*x.shape[:-1], rows)


def _conv2d_fake(x, values, columns, counts, starts, bias, rows, cols, block, *window):  # type: ignore[no-untyped-def]
    check_conv2d(x, values, columns, counts, starts, bias, rows, cols, block, *window[:5])
    return x.new_empty(x.shape[0], rows, *output_size(x, *window[:4]))


def _unpack_fake(values, columns, counts, starts, rows, cols, block):  # type: ignore[no-untyped-def]
    return values.new_empty(rows, cols)


def _save_linear(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, *packed, bias, rows, cols, block, low, high = inputs
    gradients.save(ctx, packed, (rows, cols, block), bias, output, low, high)


def _backward_linear(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.linear(ctx, grad, torch.ops.sparseprune.csr_unpack)
    return grad_x, None, None, None, None, grad_bias, *(None,) * 5


def _save_conv2d(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *packed, bias, rows, cols, block = inputs[:9]
    gradients.save(ctx, packed, (rows, cols, block), bias, output, *inputs[14:])
    ctx.shape, ctx.window = x.shape, inputs[9:14]


def _backward_conv2d(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.conv2d(ctx, grad, torch.ops.sparseprune.csr_unpack)
    return grad_x, None, None, None, None, grad_bias, *(None,) * 10


register(
    ("sparseprune", "sparseprune_reference", "sparseprune_triton"),
    SCHEMAS,
    {
        "csr_linear": (linear_reference, _linear_fake),
        "csr_conv2d": (conv2d_reference, _conv2d_fake),
        "csr_unpack": (unpack, _unpack_fake),
    },
    {
        "csr_linear": (_save_linear, _backward_linear),
        "csr_conv2d": (_save_conv2d, _backward_conv2d),
    },
)
