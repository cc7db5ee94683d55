"""nm ops: schema, fake kernel, reference and gradient. Native code adds only kernels.

A pruned weight contributes nothing to an output, even where the input is NaN or infinite. A group
with fewer than n nonzeros stores zeros, which count as in a dense layer: 0 * inf = NaN. Sums are in
float32 whatever the dtype of x, the weight and y, which share one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats.nm import split_places, unpack
from sparseprune.ops import gradients
from sparseprune.ops.nm_checks import check_conv2d, check_linear
from sparseprune.ops.products import clamp_, multiply
from sparseprune.ops.registration import register
from sparseprune.ops.windows import conv2d_output, fold, output_size, unfold

_WEIGHT = "Tensor values, Tensor places"
_SIZES = "int rows, int cols, int n, int m"
_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_CLAMP = "float? low=None, float? high=None"

SCHEMAS = {
    "nm_linear": f"(Tensor x, {_WEIGHT}, Tensor? bias, {_SIZES}, {_CLAMP}) -> Tensor",
    "nm_conv2d": (
        f"(Tensor x, {_WEIGHT}, Tensor? bias, {_SIZES}, int taps, {_WINDOW}, {_CLAMP}) -> Tensor"
    ),
    "nm_unpack": f"({_WEIGHT}, {_SIZES}, int taps) -> Tensor",
}


def linear_reference(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """y = clamp(x W^T + bias) over the stored weights alone; x [..., cols] -> [..., rows]."""
    check_linear(x, values, places, bias, rows, cols, n, m)
    tokens = x.reshape(x.shape[:-1].numel(), cols)
    y = _multiply(tokens, values, places, n, m, bias, low, high)
    return y.view(*x.shape[:-1], rows)


def conv2d_reference(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    n: int,
    m: int,
    taps: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution as a product with the unfolded input, over the stored weights alone."""
    window = (kernel_size, stride, padding, dilation)
    check_conv2d(x, values, places, bias, rows, cols, n, m, taps, *window, groups)
    y = conv2d_output(x, rows, output_size(x, *window))
    if x.shape[0] == 0:
        return y
    patches = unfold(x, *window, groups, taps)
    each = rows // groups
    parts = []
    for g in range(groups):
        part = slice(g * each, (g + 1) * each)
        own = None if bias is None else bias[part]
        parts.append(_multiply(patches[:, g], values[part], places[part], n, m, own, low, high))
    return fold(torch.cat(parts, 1), y)


def _multiply(
    x: Tensor,
    values: Tensor,
    places: Tensor,
    n: int,
    m: int,
    bias: Tensor | None,
    low: float | None,
    high: float | None,
) -> Tensor:
    """y[t, r] = clamp(bias[r] + sum over the stored weights of row r), in float32."""
    rows, wide = values.shape
    column = torch.arange(wide, device=x.device) // n * m + split_places(places, m)[:, :wide]
    row = torch.arange(rows, device=x.device).repeat_interleave(wide)
    padded = F.pad(x.float(), (0, wide // n * m - x.shape[1]))
    y = multiply(padded, values.float().flatten(), row, column.flatten(), rows)
    if bias is not None:
        y = y + bias.float()
    return clamp_(y, low, high).to(x.dtype).contiguous()


def _linear_fake(x, values, places, bias, rows, cols, n, m, low=None, high=None):  # type: ignore[no-untyped-def]
    check_linear(x, values, places, bias, rows, cols, n, m)
    return x.new_empty(*x.shape[:-1], rows)


def _conv2d_fake(x, values, places, bias, rows, cols, n, m, taps, *window):  # type: ignore[no-untyped-def]
    check_conv2d(x, values, places, bias, rows, cols, n, m, taps, *window[:5])
    return conv2d_output(x, rows, output_size(x, *window[:4]))


def _unpack_fake(values, places, rows, cols, n, m, taps):  # type: ignore[no-untyped-def]
    return values.new_empty(rows, cols)


def _save_linear(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, *packed, bias, rows, cols, n, m, low, high = inputs
    gradients.save(ctx, packed, (rows, cols, n, m, 1), bias, output, low, high)


def _backward_linear(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.linear(ctx, grad, torch.ops.sparseprune.nm_unpack)
    return grad_x, None, None, grad_bias, *(None,) * 6


def _save_conv2d(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *packed, bias = inputs[:4]
    gradients.save(ctx, packed, inputs[4:9], bias, output, *inputs[14:])
    ctx.shape, ctx.window = x.shape, inputs[9:14]


def _backward_conv2d(ctx, grad):  # type: ignore[no-untyped-def]
    grad_x, grad_bias = gradients.conv2d(ctx, grad, torch.ops.sparseprune.nm_unpack)
    return grad_x, None, None, grad_bias, *(None,) * 12


register(
    ("sparseprune", "sparseprune_reference", "sparseprune_triton"),
    SCHEMAS,
    {
        "nm_linear": (linear_reference, _linear_fake),
        "nm_conv2d": (conv2d_reference, _conv2d_fake),
        "nm_unpack": (unpack, _unpack_fake),
    },
    {
        "nm_linear": (_save_linear, _backward_linear),
        "nm_conv2d": (_save_conv2d, _backward_conv2d),
    },
)
