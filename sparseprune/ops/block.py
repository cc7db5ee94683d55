"""block ops: schema, fake kernel, reference and gradient. Native code adds only kernels.

A block without nonzeros contributes nothing to the output, even where the input is NaN or
infinite. The zeros inside a stored block count as in a dense layer: 0 * inf = NaN. Sums are in
float32 whatever the dtype of x, the weight and y, which share one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats.block import rows_of, unpack
from sparseprune.ops import gradients
from sparseprune.ops.block_checks import check_conv2d, check_linear
from sparseprune.ops.products import CHUNK, clamp_
from sparseprune.ops.registration import register
from sparseprune.ops.windows import conv2d_output, fold, output_size, unfold

_PACKED = "Tensor values, Tensor columns, Tensor starts"
_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_CLAMP = "float? low=None, float? high=None"

SCHEMAS = {
    "block_linear": f"(Tensor x, {_PACKED}, Tensor? bias, int rows, int cols, {_CLAMP}) -> Tensor",
    "block_conv2d": (
        f"(Tensor x, {_PACKED}, Tensor? bias, int rows, int cols, int taps, {_WINDOW}, {_CLAMP})"
        " -> Tensor"
    ),
    "block_unpack": f"({_PACKED}, int rows, int cols, int taps) -> Tensor",
}


def linear_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias) over the blocks of W alone; x [..., cols] -> [..., rows]."""
    check_linear(x, values, columns, starts, bias, rows, cols)
    tokens = x.reshape(x.shape[:-1].numel(), cols)
    y = _multiply(tokens, values, columns, starts, rows, bias, low, high)
    return y.view(*x.shape[:-1], rows)


def conv2d_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    taps: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution as a product with the unfolded input, over the blocks of W alone."""
    window = (kernel_size, stride, padding, dilation)
    check_conv2d(x, values, columns, starts, bias, rows, cols, taps, *window, groups)
    y = conv2d_output(x, rows, output_size(x, *window))
    if x.shape[0] == 0:
        return y
    patches = unfold(x, *window, groups, taps)
    each = rows // groups
    tall = -(-each // values.shape[1])
    parts = []
    for g in range(groups):
        begins = starts[g * tall : (g + 1) * tall + 1]
        part = slice(int(begins[0]), int(begins[-1]))
        parts.append(
            _multiply(
                patches[:, g],
                values[part],
                columns[part],
                begins - begins[0],
                each,
                None if bias is None else bias[g * each : (g + 1) * each],
                low,
                high,
            )
        )
    return fold(torch.cat(parts, 1), y)


def _multiply(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    rows: int,
    bias: Tensor | None,
    low: float | None,
    high: float | None,
) -> Tensor:
    """y[t, r] = clamp(bias[r] + sum over the blocks of row r), in float32; x [tokens, cols]."""
    blocks, r, c = values.shape
    tokens, cols = x.shape
    wide = F.pad(x.float(), (0, -cols % c)).unflatten(1, (-1, c))  # [tokens, block columns, c]
    y = wide.new_zeros(tokens, len(starts) - 1, r)
    row, weight = rows_of(starts, blocks), values.float()
    step = max(1, CHUNK // max(1, blocks * max(r, c)))
    for first in range(0, tokens, step):
        part = torch.einsum("tnc,nrc->tnr", wide[first : first + step, columns.long()], weight)
        y[first : first + step].index_add_(1, row, part)
    y = y.flatten(1)[:, :rows]
    if bias is not None:
        y = y + bias.float()
    return clamp_(y, low, high).to(x.dtype).contiguous()


def _linear_fake(x, values, columns, starts, bias, rows, cols, low=None, high=None):  # type: ignore[no-untyped-def]
    check_linear(x, values, columns, starts, bias, rows, cols)
    return x.new_empty(*x.shape[:-1], rows)


def _conv2d_fake(x, values, columns, starts, bias, rows, cols, taps, *window):  # type: ignore[no-untyped-def]
    check_conv2d(x, values, columns, starts, bias, rows, cols, taps, *window[:5])
    return conv2d_output(x, rows, output_size(x, *window[:4]))


def _unpack_fake(values, columns, starts, rows, cols, taps):  # type: ignore[no-untyped-def]
    return values.new_empty(rows, cols)


def _save_linear(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, *packed, bias, rows, cols, low, high = inputs
    gradients.save(ctx, packed, (rows, cols, 1), bias, output, low, high)


def _backward_linear(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.linear(ctx, grad, torch.ops.sparseprune.block_unpack)
    return grad_x, None, None, None, grad_bias, *(None,) * 4


def _save_conv2d(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *packed, bias, rows, cols, taps = inputs[:8]
    gradients.save(ctx, packed, (rows, cols, taps), bias, output, *inputs[13:])
    ctx.shape, ctx.window = x.shape, inputs[8:13]


def _backward_conv2d(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.conv2d(ctx, grad, torch.ops.sparseprune.block_unpack)
    return grad_x, None, None, None, grad_bias, *(None,) * 10


register(
    ("sparseprune", "sparseprune_reference", "sparseprune_triton", "sparseprune_wgmma"),
    SCHEMAS,
    {
        "block_linear": (linear_reference, _linear_fake),
        "block_conv2d": (conv2d_reference, _conv2d_fake),
        "block_unpack": (unpack, _unpack_fake),
    },
    {
        "block_linear": (_save_linear, _backward_linear),
        "block_conv2d": (_save_conv2d, _backward_conv2d),
    },
)
