"""nn.Conv2d with a packed weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.formats import Csr, Format, PackedWeight
from sparseprune.formats.base import Clamp, Pair


class SparseConv2d(nn.Module):
    """nn.Conv2d with W packed: x [batch, channels, height, width] (or unbatched) float32.

    For inference; gradients reach x and, where it asks for them, the bias. A pruned weight
    contributes nothing even where x is NaN or infinite.

    Args:
        weight: packed [out_channels, in_channels / groups * kernel height * kernel width].
        bias: [out_channels], or None.
        kernel_size, stride, dilation: (height, width).
        padding: (left, right, top, bottom), as torch.nn.functional.pad takes it.
        groups: channel groups.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        clamp: lowest and highest output; (0.0, None) is a ReLU in the kernel.
    """

    kind = "Conv2d"

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        kernel_size: Pair,
        stride: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        padding_mode: str = "zeros",
        clamp: Clamp = (None, None),
    ) -> None:
        super().__init__()
        self.weight, self.clamp = weight, clamp
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.padding, self.groups, self.padding_mode = padding, groups, padding_mode
        left, right, top, bottom = padding
        even = padding_mode == "zeros" and left == right and top == bottom
        # The kernel writes even zero padding itself; any other goes through F.pad first.
        self._inner: Pair = (top, left) if even else (0, 0)
        self._outer = None if even else padding

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.cols * self.groups // (self.kernel_size[0] * self.kernel_size[1])

    @property
    def out_channels(self) -> int:
        """Rows of the weight."""
        return self.weight.rows

    @staticmethod
    def dense_weight(conv: nn.Conv2d) -> tuple[Tensor, int]:
        """The matrix that a format packs, and its number of groups."""
        return conv.weight.detach().flatten(1), conv.groups

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, format: Format | None = None, weight: PackedWeight | None = None
    ) -> SparseConv2d:
        """A sparse copy of a convolution; its exact zeros are what was pruned.

        Args:
            conv: float32; any kernel size, stride, padding and its modes, dilation, groups.
            format: how to pack; ``Csr()`` by default, or ``Csr("rows")`` where groups demand it.
            weight: the packed weight, where it exists already (tied weights).

        Raises:
            ValueError: not a Conv2d, a format for other layers, or a weight that it refuses.
        """
        if not isinstance(conv, nn.Conv2d):
            raise bad("SparseConv2d.from_dense", "conv", "an nn.Conv2d", type(conv).__name__,
                      "see sparseprune.nn.SPARSE for the layers there are")  # fmt: skip
        if format is not None and cls.kind not in format.serves:
            raise bad("SparseConv2d.from_dense", "format", f"one that serves {cls.kind}",
                      format.name, "take Csr()")  # fmt: skip
        if weight is None:
            dense, groups = cls.dense_weight(conv)
            if format is None:
                format = Csr("rows") if Csr().refuses(dense, groups) else Csr()
            weight = format.pack(dense, groups)
        return cls(
            weight,
            None if conv.bias is None else conv.bias.detach().clone(),
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _padding(conv),
            _pair(conv.dilation),
            conv.groups,
            conv.padding_mode,
        )

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

    def extra_repr(self) -> str:
        clamp = f", clamp={self.clamp}" if any(v is not None for v in self.clamp) else ""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}{clamp}"
        )


def _pair(value: tuple[int, ...]) -> Pair:
    height, width = value
    return height, width


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of an nn.Conv2d, whose "same" may be uneven."""
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        return left, total[1] - left, top, total[0] - top
    if conv.padding == "valid":
        return 0, 0, 0, 0
    height, width = _pair(conv.padding)  # type: ignore[arg-type]
    return width, width, height, height
