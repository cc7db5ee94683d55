"""nn.Conv1d and nn.Conv3d with a packed weight: each a program of one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparseprune.formats.base import Clamp
from sparseprune.nn.conv import SparseConv
from sparseprune.program.steps import Csr, Input, Output, clamped
from sparseprune.program.text import to_text


class ByProgram(SparseConv):
    """A convolution that the op ``run`` computes: every padding and mode, without a copy of x.

    Where x or the bias asks for a gradient, the op ``csr_conv`` runs the same kernel; the gradient
    goes through the dense weight, which is unpacked for it.
    """

    @property  # type: ignore[override]
    def clamp(self) -> Clamp:
        """Lowest and highest output."""
        return self._clamp

    @clamp.setter
    def clamp(self, clamp: Clamp) -> None:
        self._clamp = clamp
        self.follow()

    def follow(self) -> None:
        """Write the program anew, after the weight took another packing or the clamp changed."""
        weight: Any = self.weight
        step = Csr(1, 0, -1, 0, weight.rows, weight.cols, weight.block, self.groups,
                   int(self.bias is not None), self.window(), clamped(*self._clamp))  # fmt: skip
        self._text = to_text([Input(0, "image", self.in_channels, self.dims), step, Output(1)])

    def forward(self, input: Tensor) -> Tensor:  # named as in torch.nn, for callers by keyword
        if input.dim() == self.dims + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return self.weight.convolve(input, self.bias, self._text)


class SparseConv1d(ByProgram):
    """nn.Conv1d with W packed: x [batch, channels, length] (or unbatched) float32.

    Arguments as for :class:`SparseConv`; padding is (left, right).
    """

    kind = "Conv1d"
    dense = nn.Conv1d
    dims = 1


class SparseConv3d(ByProgram):
    """nn.Conv3d with W packed: x [batch, channels, depth, height, width] (or unbatched) float32.

    Arguments as for :class:`SparseConv`; padding is (left, right, top, bottom, front, back).
    """

    kind = "Conv3d"
    dense = nn.Conv3d
    dims = 3
