"""What the 2-d convolutions of every format check and compute of their windows alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def check_window(
    op: str,
    x: Tensor,
    rows: int,
    cols: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The input and the window of a convolution whose weight is [rows, cols], as csrc/ops does."""
    torch._check(
        x.dim() == 4,
        lambda: f"{op}: x must be [batch, channels, height, width], got {tuple(x.shape)}",
    )
    pairs = (kernel_size, stride, padding, dilation)
    torch._check(
        all(len(pair) == 2 for pair in pairs),
        lambda: f"{op}: kernel_size, stride, padding and dilation must be pairs, got {pairs}",
    )
    torch._check(
        min(*kernel_size, *stride, *dilation) > 0 and min(padding) >= 0,
        lambda: f"{op}: kernel_size, stride and dilation must be positive, padding not negative",
    )
    torch._check(
        groups > 0
        and rows % groups == 0
        and x.shape[1] * prod(kernel_size) == cols * max(groups, 1),
        lambda: (
            f"{op}: x must have {cols * groups // prod(kernel_size)} channels "
            f"(groups={groups}), got {x.shape[1]}"
        ),
    )
    for i, side in enumerate(("height", "width")):
        padded = x.shape[2 + i] + 2 * padding[i]
        torch._check(
            padded > dilation[i] * (kernel_size[i] - 1),
            lambda side=side, padded=padded: (  # type: ignore[misc]
                f"{op}: the padded input must be as large as the dilated kernel, got "
                f"{side} {padded}; enlarge the input"
            ),
        )


def output_size(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the output."""
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


def conv2d_output(x: Tensor, rows: int, size: tuple[int, int]) -> Tensor:
    """An output in the memory format of x: where channels are last, they stay last."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (x.shape[0], rows, *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def unfold(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    taps: int,
) -> Tensor:
    """What the output pixels of all images read: [tokens, groups, columns of the packed weight].

    taps: as the packed weight has it; 1 where its columns are (channel, ky, kx).
    """
    sizes = (tuple(pair) for pair in (kernel_size, dilation, padding, stride))
    patches = F.unfold(x, *sizes).transpose(1, 2)  # [batch, pixels, groups * cols]
    per_group = patches.shape[-1] // groups
    patches = patches.reshape(-1, groups, per_group // taps, taps)
    return patches.transpose(2, 3).flatten(2)


def fold(tokens: Tensor, y: Tensor) -> Tensor:
    """Outputs [tokens, rows] of all pixels, written to y [batch, rows, height, width]."""
    out = tokens.view(y.shape[0], -1, y.shape[1]).transpose(1, 2)
    return y.copy_(out.view(y.shape))
