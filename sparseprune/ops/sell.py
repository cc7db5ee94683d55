"""sell ops: schema, fake kernel, reference and gradient. Native code adds only kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseprune.formats.sell import SLICE_ROWS, SellWeight, entries, unpack
from sparseprune.ops.linear import LinearFormat


def _needs(
    buffers: Sequence[Tensor], rows: int, cols: int
) -> Mapping[str, tuple[torch.dtype | None, int]]:
    places = buffers[2].numel() * SLICE_ROWS
    return {
        "values": (None, places),
        "columns": (torch.uint8, places),
        "windows": (torch.uint16, 0),
        "starts": (torch.int32, -(-rows // SLICE_ROWS) + 1),
    }


SELL = LinearFormat("Sell.pack", SellWeight.parts, _needs, entries, unpack)
SELL.register()
