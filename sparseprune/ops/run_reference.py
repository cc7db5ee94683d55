"""What the steps of a program compute, in torch: the reference of the op ``run``.

In between, images are [N, C, depth, height, width] and tokens
[sequences, T, C], or of pixels [N, *sizes, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.formats.csr import CsrWeight, entries
from sparseprune.ops.bitmask import BITMASK
from sparseprune.ops.linear import LinearFormat
from sparseprune.ops.products import multiply
from sparseprune.ops.sell import SELL
from sparseprune.program.rotary import heads_of, rotate
from sparseprune.program.steps import (
    Activation,
    Adaptive,
    Add,
    Bitmask,
    Cat,
    Channels,
    Csr,
    Depthwise,
    Flatten,
    Input,
    Linear,
    Mean,
    Multiply,
    OnTokens,
    Pool,
    Scale,
    Sell,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.steps_sequences import Attention, Norm, Picture, Pixels, Rotary

Weights = Sequence[Tensor]
Layer: TypeAlias = Csr | OnTokens | Depthwise | Norm
"""A step with weights."""

FEW: dict[type[Step], LinearFormat] = {Bitmask: BITMASK, Sell: SELL}
"""Step on tokens -> the format of its weight, for few of them."""
TENSORS: dict[type[Step], int] = {
    Csr: len(CsrWeight.parts),
    **{step: len(packed.parts) for step, packed in FEW.items()},
    Linear: 1,
    Depthwise: 1,
    Norm: 1,
}
"""Step -> tensors that it takes before its bias."""


def tensors(step: Layer, weights: Weights) -> tuple[Weights, Tensor | None]:
    """The tensors of a step, and its bias."""
    end = step.tensors + TENSORS[type(step)]
    torch._check(
        end + step.has_bias <= len(weights),
        lambda: (
            f"run: weights must be at least {end + step.has_bias} tensors, got {len(weights)}; "
            "pass Program.tensors()"
        ),
    )
    return weights[step.tensors : end], weights[end] if step.has_bias else None


def enter(step: Input, x: Tensor) -> Tensor:
    """An input of the op as a value."""
    if step.kind == "image":
        return x.reshape(*x.shape[:2], *(1,) * (3 - step.dims), *x.shape[2:])
    if x.dim() == 4:
        return x
    return x.reshape(x.shape[:-2].numel(), x.shape[-2] if x.dim() > 1 else 1, step.channels)


def _pad(x: Tensor, window: Window) -> Tensor:
    """The image with its padding around it."""
    sides = [side for i in (2, 1, 0) for side in (window.before[i], window.after[i])]
    if not any(sides):
        return x
    plain = window.mode == "zeros" or x.shape[0] == 0  # torch reflects no empty batch
    return F.pad(x, sides, mode="constant" if plain else window.mode)


def _patches(x: Tensor, window: Window) -> Tensor:
    """The windows of a padded image as [N, *sizes, C, *kernel]."""
    for i in range(3):
        reach = window.dilation[i] * (window.kernel[i] - 1) + 1
        x = x.unfold(2 + i, reach, window.stride[i])[..., :: window.dilation[i]]
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7)


def _csr(step: Csr, values: dict[int, Tensor], weights: Weights) -> Tensor:
    """W x over the nonzeros of W alone."""
    (stored, columns, counts, starts), bias = tensors(step, weights)
    row, column = entries(columns, counts, starts, step.rows, step.cols, step.block)
    column = column + row // max(1, step.rows // step.groups) * step.cols
    x = values[step.x]
    image = x.dim() == 5
    if image:
        x = _patches(_pad(x, step.window), step.window)
    sizes = x.shape[:4] if image else x.shape[:-1]
    y = multiply(x.reshape(sizes.numel(), step.cols * step.groups), stored, row, column, step.rows)
    y = (y if bias is None else y + bias.view(-1)).view(*sizes, step.rows)
    return _finish(y.permute(0, 4, 1, 2, 3) if image else y, step, values)


def _few(step: OnTokens, values: dict[int, Tensor], weights: Weights) -> Tensor:
    """The same in a format for few tokens."""
    packed, bias = tensors(step, weights)
    x = values[step.x]
    y = multiply(x.flatten(0, -2), *FEW[type(step)].entries(*packed), step.rows)
    y = y.view(*x.shape[:-1], step.rows)
    return _finish(y if bias is None else y + bias.view(-1), step, values)


def _linear(step: Linear, values: dict[int, Tensor], weights: Weights) -> Tensor:
    (weight,), bias = tensors(step, weights)
    bias = None if bias is None else bias.view(-1)
    return _finish(F.linear(values[step.x], weight.view(step.rows, step.cols), bias), step, values)


def _depthwise(step: Depthwise, values: dict[int, Tensor], weights: Weights) -> Tensor:
    (weight,), bias = tensors(step, weights)
    bias = None if bias is None else bias.view(-1)
    if values[step.x].dim() < 5:
        y = values[step.x] * weight.view(-1)
        return _finish(y if bias is None else y + bias, step, values)
    x, window = _pad(values[step.x], step.window), step.window
    weight = weight.view(step.channels * step.multiplier, 1, *window.kernel)
    y = F.conv3d(x, weight, bias, window.stride, 0, window.dilation, step.channels)
    return _finish(y, step, values)


def _pool(step: Pool, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x, w = values[step.x], step.window
    if step.kind == "max":
        return F.max_pool3d(x, w.kernel, w.stride, w.before, w.dilation, bool(step.ceil))
    how = bool(step.ceil), bool(step.count_padding)
    if x.shape[2] == w.kernel[0] == 1:  # in three dimensions torch cuts off no window
        y = F.avg_pool2d(x.squeeze(2), w.kernel[1:], w.stride[1:], w.before[1:], *how)
        return y.unsqueeze(2)
    return F.avg_pool3d(x, w.kernel, w.stride, w.before, *how)


def _adaptive(step: Adaptive, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return F.adaptive_avg_pool3d(values[step.x], tuple(size or None for size in step.size))  # type: ignore[arg-type]


def _upsample(step: Upsample, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x = values[step.x]
    for dim, times in enumerate(step.times, start=2):
        x = x.repeat_interleave(times, dim)
    return x


def _channels(step: Channels, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x = values[step.x]
    grouped = x.reshape(x.shape[0], step.groups, x.shape[1] // step.groups, *x.shape[2:])
    dealt = grouped.transpose(1, 2).reshape(x.shape)
    return dealt[:, step.begin : step.begin + step.count]


def _add(step: Add, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return _finish(values[step.x], step, values)


def _multiply(step: Multiply, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return values[step.x] * values[step.y]


def _scale(step: Scale, values: dict[int, Tensor], weights: Weights) -> Tensor:
    return activate(values[step.x] * values[step.by], step.activation)


def _norm(step: Norm, values: dict[int, Tensor], weights: Weights) -> Tensor:
    (weight,), bias = tensors(step, weights)
    x, weight = values[step.x], weight.view(-1)
    if step.centred:
        bias = None if bias is None else bias.view(-1)
        return F.layer_norm(x, weight.shape, weight, bias, step.epsilon)
    y = F.rms_norm(x, weight.shape, weight, step.epsilon)
    return y if bias is None else y + bias.view(-1)


def _rotary(step: Rotary, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x = values[step.x]
    cos, sin = (values[v].reshape(*x.shape[:-1], step.turned) for v in (step.cos, step.sin))
    return rotate(x, cos, sin, step.first, step.stride, step.heads, step.head, bool(step.pairs))


def _attention(step: Attention, values: dict[int, Tensor], weights: Weights) -> Tensor:
    counts = (step.heads, *[step.heads // step.group] * 2)
    read = zip((step.x, step.key, step.value), step.first, step.strides, counts, strict=True)
    q, k, v = (
        heads_of(values[x], first, stride, count, step.head).repeat_interleave(
            step.heads // count, -2
        )
        for x, first, stride, count in read
    )
    scores = q.transpose(-2, -3) @ k.movedim(-3, -1) * step.scale
    if step.mask != -1:
        scores = scores + values[step.mask].reshape(-1, 1, *scores.shape[-2:])
    if step.causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    unseen = (scores == -torch.inf).all(-1, keepdim=True)
    mixed = scores.softmax(-1).masked_fill(unseen, 0) @ v.transpose(-2, -3)
    y: Tensor = mixed.transpose(-2, -3).flatten(-2)
    return y


def _pixels(step: Pixels, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x = values[step.x]
    return x.reshape(*x.shape[:2], *x.shape[5 - step.dims :]).movedim(1, -1)


def _picture(step: Picture, values: dict[int, Tensor], weights: Weights) -> Tensor:
    x = values[step.x].movedim(-1, 1)
    return x.reshape(*x.shape[:2], *(1,) * (3 - step.dims), *x.shape[2:])


def _finish(y: Tensor, step: OnTokens | Csr | Depthwise | Add, values: dict[int, Tensor]) -> Tensor:
    if step.residual != -1:
        y = y + values[step.residual]
    return activate(y, step.activation)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every element of x."""
    return ACTIVATE[activation.kind](x, activation)


ACTIVATE: dict[str, Callable[[Tensor, Activation], Tensor]] = {
    "clamp": lambda x, a: x.clamp(a.low, a.high),
    "leaky": lambda x, a: F.leaky_relu(x, a.low),
    "elu": lambda x, a: torch.where(x > 0, x * a.high, a.low * torch.expm1(x)),
    "silu": lambda x, a: F.silu(x),
    "gelu": lambda x, a: F.gelu(x),
    "gelu_tanh": lambda x, a: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x, a: F.hardswish(x),
    "hardsigmoid": lambda x, a: F.hardsigmoid(x),
    "sigmoid": lambda x, a: x.sigmoid(),
    "tanh": lambda x, a: x.tanh(),
    "mish": lambda x, a: F.mish(x),
}
"""Kind of activation -> what it computes."""

KERNELS: dict[type[Step], Callable[[Any, dict[int, Tensor], Weights], Tensor]] = {
    Csr: _csr,
    **dict.fromkeys(FEW, _few),
    Linear: _linear,
    Depthwise: _depthwise,
    Pool: _pool,
    Mean: lambda step, values, weights: values[step.x].mean((2, 3, 4), keepdim=True),
    Adaptive: _adaptive,
    Upsample: _upsample,
    Add: _add,
    Multiply: _multiply,
    Scale: _scale,
    Cat: lambda step, values, weights: torch.cat([values[step.x], values[step.y]], 1),
    Channels: _channels,
    Flatten: lambda step, values, weights: values[step.x].flatten(1)[None],
    Norm: _norm,
    Rotary: _rotary,
    Attention: _attention,
    Pixels: _pixels,
    Picture: _picture,
}
"""Step -> what it computes."""
