"""nn.Linear with a packed weight."""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.formats import Csr, Format, PackedWeight
from sparseprune.formats.base import Clamp


class SparseLinear(nn.Module):
    """y = x W^T + b with W packed: x [..., in_features] float32 -> [..., out_features].

    For inference; gradients reach x and, where it asks for them, the bias. A pruned weight
    contributes nothing even where x is NaN or infinite.

    Args:
        weight: packed [out_features, in_features].
        bias: [out_features], or None.
        clamp: lowest and highest output; (0.0, None) is a ReLU in the kernel.
    """

    kind = "Linear"

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None = None, clamp: Clamp = (None, None)
    ) -> None:
        super().__init__()
        self.weight, self.clamp = weight, clamp
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.cols

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.rows

    @staticmethod
    def dense_weight(linear: nn.Linear) -> tuple[Tensor, int]:
        """The matrix that a format packs, and its number of groups."""
        return linear.weight.detach(), 1

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, format: Format | None = None, weight: PackedWeight | None = None
    ) -> SparseLinear:
        """A sparse copy of a linear layer; its exact zeros are what was pruned.

        Args:
            linear: float32.
            format: how to pack; ``Csr()`` by default.
            weight: the packed weight, where it exists already (tied weights).

        Raises:
            ValueError: not a Linear, or a weight that the format refuses.
        """
        if not isinstance(linear, nn.Linear):
            raise bad("SparseLinear.from_dense", "linear", "an nn.Linear", type(linear).__name__,
                      "see sparseprune.nn.SPARSE for the layers there are")  # fmt: skip
        if weight is None:
            weight = (format or Csr()).pack(*cls.dense_weight(linear))
        return cls(weight, None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear, for callers by keyword
        return self.weight.linear(input, self.bias, self.clamp)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        clamp = f", clamp={self.clamp}" if any(v is not None for v in self.clamp) else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}{clamp}"
        )
