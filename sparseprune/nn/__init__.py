"""Drop-in sparse layers: one packed weight, one bias."""

from __future__ import annotations

from torch import nn

from sparseprune.nn.attention import MultiheadAttention
from sparseprune.nn.conv import SparseConv, SparseConv2d
from sparseprune.nn.conv_program import SparseConv1d, SparseConv3d
from sparseprune.nn.linear import SparseLinear

SPARSE: dict[type[nn.Module], type[SparseLinear] | type[SparseConv]] = {
    nn.Linear: SparseLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
}
"""Dense layer -> the sparse layer that takes its place. Exact types: a subclass may do more."""

LEAVES = (*SPARSE.values(), MultiheadAttention)
"""Layers of this package, which torch.fx is not to look into."""

__all__ = [
    "LEAVES",
    "SPARSE",
    "MultiheadAttention",
    "SparseConv",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
]
