"""What a format is: how the bytes of a pruned weight lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sparseprune import backends
from sparseprune.errors import warn

Pair = tuple[int, int]
Clamp = tuple[float | None, float | None]
"""Lowest and highest output, None where there is no limit: (0.0, None) is ReLU."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of the formats whose values are not float32 alone."""


class PackedWeight(nn.Module):
    """A weight [rows, cols] without its zeros. Buffers only, so a state_dict holds it."""

    stem: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    """Its buffers, in the order that the ops take them."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.rows, self.cols = rows, cols
        self.backend, self.namespace = "auto", ""

    @property
    def name(self) -> str:
        """Format and layout, as in reports."""
        raise NotImplementedError

    @property
    def nonzeros(self) -> int:
        """Stored weights."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """The constructor's numbers, for a manifest; the buffers are the rest."""
        raise NotImplementedError

    def twin(self) -> Self:
        """Another packed weight on the same buffers."""
        made = type(self)(**self.spec(), **dict(self.named_buffers()))  # type: ignore[arg-type]
        made.backend, made.namespace = self.backend, self.namespace
        return made

    def linear(self, x: Tensor, bias: Tensor | None, clamp: Clamp = (None, None)) -> Tensor:
        """x [..., cols] -> [..., rows], as torch.nn.functional.linear, then clamped."""
        raise NotImplementedError

    def conv2d(
        self,
        x: Tensor,
        bias: Tensor | None,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        clamp: Clamp = (None, None),
    ) -> Tensor:
        """x [batch, channels, height, width], as torch.nn.functional.conv2d, then clamped."""
        raise NotImplementedError

    def convolve(self, x: Tensor, bias: Tensor | None, program: str) -> Tensor:
        """x [batch, channels, *sizes] through a program of one convolution with this weight."""
        raise NotImplementedError

    def unpack(self) -> Tensor:
        """The dense weight [rows, cols]."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """The dense shape [rows, cols]."""
        return torch.Size((self.rows, self.cols))

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return next(self.buffers()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return next(self.buffers()).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, indices included."""
        return sum(b.nbytes for b in self.buffers())

    def lacking(self, backend: str) -> str | None:
        """Why the backend of that name, which serves the format, cannot take this weight."""
        return None

    def use(self, backend: str = "auto") -> Self:
        """Choose who computes, now and after every move to another device.

        Raises:
            ValueError: unknown backend, or one that refuses this device or weight.
        """
        chosen = backends.choose(self.device, backend, self.stem, self.lacking)
        self.namespace, self.backend = chosen.namespace, backend
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before, wanted = self.device, self.backend
        super()._apply(fn, recurse)
        if self.device == before:
            return self
        follows = backends.serves(wanted, self.device, self.stem, self.lacking)
        self.use(wanted if follows else "auto")
        if self.device.type not in (before.type, "meta"):
            _tell_of_move(before, self.device, wanted, follows)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, {self.rows} x {self.cols}, nonzeros={self.nonzeros}"


def _tell_of_move(before: torch.device, now: torch.device, wanted: str, follows: bool) -> None:
    """Once for a whole model: Python shows equal warnings of one place once."""
    gave_way = "" if follows else f"; backend {wanted!r} does not serve {now.type}, 'auto' does"
    warn(
        f"sparseprune: packed layers moved from {before.type} to {now.type}, but their formats "
        f"were chosen for {before.type}; convert there to choose anew{gave_way}"
    )


class Format:
    """Packs weights [outputs, inputs], or says why not. Knows its op, never its device."""

    stem: ClassVar[str]
    serves: ClassVar[tuple[str, ...]] = ("Linear", "Conv2d")
    """Layers whose weight it may hold."""

    @property
    def cpu_kernels(self) -> str:
        """The stem of its rows in the table of CPU kernels."""
        return self.stem

    @property
    def name(self) -> str:
        """Stem and layout, as in reports."""
        raise NotImplementedError

    def worth(self, weight: Tensor, tokens: int) -> bool:
        """Whether convert should time it on that many rows of input, where others are to choose."""
        return True

    def suited(self, layer: nn.Module) -> Format:
        """This format with what it should know of the dense layer whose weight it packs."""
        return self

    def settled(self, weight: Tensor, groups: int = 1) -> Format:
        """This format with all that :meth:`pack` would find out from a weight that it can hold."""
        return self

    def lacking(self, backend: str, layer: nn.Module | None = None) -> str | None:
        """Why the backend of that name lacks kernels for what is packed so; None if it has them.

        layer: the dense one that is packed, where it is known.
        """
        return None

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        """Why this weight cannot be packed, or None. groups: of a convolution."""
        raise NotImplementedError

    def pack(self, weight: Tensor, groups: int = 1) -> PackedWeight:
        """The packed form of the nonzeros of a weight [outputs, inputs].

        Raises:
            ValueError: when :meth:`refuses` gives a reason.
        """
        raise NotImplementedError
