"""Drop-in sparse layers: one packed weight, one bias."""

from __future__ import annotations

from torch import nn

from sparseprune.nn.conv import SparseConv2d
from sparseprune.nn.linear import SparseLinear

SPARSE: dict[type[nn.Module], type[SparseLinear] | type[SparseConv2d]] = {
    nn.Linear: SparseLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv2d: SparseConv2d,
}
"""Dense layer -> the sparse layer that takes its place. Exact types: a subclass may do more."""

__all__ = ["SPARSE", "SparseConv2d", "SparseLinear"]
