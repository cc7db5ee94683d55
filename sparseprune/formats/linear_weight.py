"""What packed weights share whose formats serve Linear layers alone; ops in ops/linear.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import Clamp, PackedWeight, Pair


class LinearWeight(PackedWeight):
    """A packed weight [rows, cols] with the op ``<stem>_linear`` and none for convolutions."""

    @property
    def name(self) -> str:
        return self.stem

    def spec(self) -> dict[str, Any]:
        return {"rows": self.rows, "cols": self.cols}

    def packed(self) -> tuple[Tensor, ...]:
        """The buffers in the order that the ops take them."""
        held = self._buffers  # the attributes would go through Module.__getattr__
        return tuple(held[part] for part in self.parts)  # type: ignore[misc]

    def linear(self, x: Tensor, bias: Tensor | None, clamp: Clamp = (None, None)) -> Tensor:
        op = getattr(getattr(torch.ops, self.namespace), f"{self.stem}_linear")
        y: Tensor = op(x, *self.packed(), bias, self.rows, self.cols, *clamp)
        return y

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
        raise bad(f"{type(self).__name__}.conv2d", "weight", "of a format that serves Conv2d",
                  self.name, "pack it with Csr()")  # fmt: skip
