"""Convolutions of 1 and 3 dimensions that tests pack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import sparse_weight
from torch import nn

from sparseprune.formats.csr import LAYOUTS
from sparseprune.nn import SparseConv, SparseConv1d, SparseConv3d

LAYERS: dict[int, tuple[Any, type[SparseConv]]] = {
    1: (nn.Conv1d, SparseConv1d),
    3: (nn.Conv3d, SparseConv3d),
}
SIZES = {1: (11,), 3: (7, 5, 6)}
PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "no_bias": {"kernel_size": 2, "bias": False, "padding": 1},
    "one_tap": {"kernel_size": 1},
    "stride_2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "groups": {"kernel_size": 3, "groups": 2},
    "groups_of_two_rows": {"kernel_size": 1, "groups": 4},
    "depthwise": {"kernel_size": 3, "groups": 8, "padding": 1},
    "same": {"kernel_size": 3, "padding": "same"},
    "same_uneven": {"kernel_size": 4, "padding": "same", "dilation": 1},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 3},
    **{
        f"{mode}{name}": {"kernel_size": 4, "padding_mode": mode, "padding": padding, "stride": s}
        for mode in ("reflect", "replicate", "circular")
        for name, padding, s in (("", 2, 2), ("_same_uneven", "same", 1))
    },
}
PER_DIMENSION: dict[int, dict[str, dict[str, Any]]] = {
    1: {"tuple": {"kernel_size": (5,), "stride": (3,), "padding": (4,), "dilation": (2,)}},
    3: {
        "tuple": {
            "kernel_size": (3, 1, 2),
            "stride": (1, 3, 2),
            "padding": (0, 2, 1),
            "dilation": (2, 1, 3),
        },
        "tuple_circular": {
            "kernel_size": (1, 3, 4),
            "padding": (2, 1, 0),
            "padding_mode": "circular",
        },
    },
}
CASES = [(d, n) for d in LAYERS for n in (*PROBLEMS, *PER_DIMENSION[d])]

every_case = pytest.mark.parametrize(("dims", "name"), CASES, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dims = pytest.mark.parametrize("dims", LAYERS)
silent = pytest.mark.filterwarnings("ignore:Using padding='same'")


def dense(dims: int, name: str) -> Any:
    """A pruned convolution of 8 channels."""
    layer = LAYERS[dims][0](8, 8, **{**PROBLEMS, **PER_DIMENSION[dims]}[name])
    generator = torch.Generator().manual_seed(7)
    layer.weight.data = sparse_weight(tuple(layer.weight.shape), 0.3, generator)
    return layer.eval().requires_grad_(False)
