"""What packed convolutions of 1 to 3 dimensions share, and nn.Conv2d with a packed weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from sparseprune.errors import bad
from sparseprune.formats import Csr, Format, PackedWeight
from sparseprune.formats.base import Clamp, Pair
from sparseprune.program.steps import Window, triple

Sizes = tuple[int, ...]
"""One number per dimension: (length,), (height, width) or (depth, height, width)."""


class SparseConv(nn.Module):
    """Base of SparseConv1d, SparseConv2d and SparseConv3d.

    For inference; gradients reach x and, where it asks for them, the bias. A pruned weight
    contributes nothing even where x is NaN or infinite.

    Args:
        weight: packed [out_channels, in_channels / groups * product of kernel_size].
        bias: [out_channels], or None.
        kernel_size, stride, dilation: one number per dimension, or one for all.
        padding: both sides of the last dimension, then of the one before it, as
            torch.nn.functional.pad takes it; or one number for all sides.
        groups: channel groups.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        clamp: lowest and highest output; (0.0, None) is a ReLU in the kernel.
    """

    kind: ClassVar[str]
    dense: ClassVar[type[Any]]
    """The layer of torch.nn that it stands for."""
    dims: ClassVar[int]
    clamp: Clamp
    kernel_size: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Sizes

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        kernel_size: int | Sizes,
        stride: int | Sizes = 1,
        padding: int | Sizes = 0,
        dilation: int | Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        clamp: Clamp = (None, None),
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.kernel_size = _each(kernel_size, self.dims)
        self.stride, self.dilation = _each(stride, self.dims), _each(dilation, self.dims)
        self.padding = _each(padding, 2 * self.dims)
        self.groups, self.padding_mode = groups, padding_mode
        self.clamp = clamp
        self._prepare()

    def _prepare(self) -> None:
        """What a forward needs that follows from the arguments."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.cols * self.groups // prod(self.kernel_size)

    @property
    def out_channels(self) -> int:
        """Rows of the weight."""
        return self.weight.rows

    def window(self) -> Window:
        """Where it reads, in the words of a program."""
        before, after = self.padding[-2::-2], self.padding[::-2]
        return Window(triple(self.kernel_size), triple(self.stride), triple(before, 0),
                      triple(after, 0), triple(self.dilation), self.padding_mode)  # fmt: skip

    @staticmethod
    def dense_weight(conv: _ConvNd) -> tuple[Tensor, int]:
        """The matrix that a format packs, and its number of groups."""
        return conv.weight.detach().flatten(1), conv.groups

    @classmethod
    def from_dense(
        cls, conv: _ConvNd, format: Format | None = None, weight: PackedWeight | None = None
    ) -> Self:
        """A sparse copy of a convolution; its exact zeros are what was pruned.

        Args:
            conv: float32; any kernel size, stride, padding and its modes, dilation, groups.
            format: how to pack; ``Csr()`` by default, or ``Csr("rows")`` where groups demand it.
            weight: the packed weight, where it exists already (tied weights).

        Raises:
            ValueError: another layer, a format for other layers, or a weight that it refuses.
        """
        name = f"{cls.__name__}.from_dense"
        if not isinstance(conv, cls.dense):
            raise bad(name, "conv", f"an nn.{cls.kind}", type(conv).__name__,
                      "see sparseprune.nn.SPARSE for the layers there are")  # fmt: skip
        if format is not None and cls.kind not in format.serves:
            raise bad(name, "format", f"one that serves {cls.kind}", format.name, "take Csr()")
        if weight is None:
            dense, groups = cls.dense_weight(conv)
            if format is None:
                format = Csr("rows") if Csr().refuses(dense, groups) else Csr()
            weight = format.suited(conv).pack(dense, groups)
        return cls(
            weight,
            None if conv.bias is None else conv.bias.detach().clone(),
            conv.kernel_size,
            conv.stride,
            _padding(conv),
            conv.dilation,
            conv.groups,
            conv.padding_mode,
        )

    def extra_repr(self) -> str:
        clamp = f", clamp={self.clamp}" if any(v is not None for v in self.clamp) else ""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}{clamp}"
        )


class SparseConv2d(SparseConv):
    """nn.Conv2d with W packed: x [batch, channels, height, width] (or unbatched) float32.

    Arguments as for :class:`SparseConv`; padding is (left, right, top, bottom).
    """

    kind = "Conv2d"
    dense = nn.Conv2d
    dims = 2
    kernel_size: Pair
    stride: Pair
    dilation: Pair

    def _prepare(self) -> None:
        left, right, top, bottom = self.padding
        even = self.padding_mode == "zeros" and left == right and top == bottom
        # The kernel writes even zero padding itself; any other goes through F.pad first.
        self._inner: Pair = (top, left) if even else (0, 0)
        self._outer = None if even else self.padding

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Conv2d, for callers by keyword
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if self._outer is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._outer, mode=mode)
        return self.weight.conv2d(
            input,
            self.bias,
            self.kernel_size,
            self.stride,
            self._inner,
            self.dilation,
            self.groups,
            self.clamp,
        )


def _each(value: int | Sequence[int], count: int) -> Sizes:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _padding(conv: _ConvNd) -> Sizes:
    """The padding of a dense convolution, whose "same" may be uneven, as F.pad takes it."""
    sides: list[int] = []
    for i in reversed(range(len(conv.kernel_size))):
        if isinstance(conv.padding, str):
            reach = conv.dilation[i] * (conv.kernel_size[i] - 1)
            total = reach if conv.padding == "same" else 0
            sides += total // 2, total - total // 2
        else:
            sides += conv.padding[i], conv.padding[i]
    return tuple(sides)
