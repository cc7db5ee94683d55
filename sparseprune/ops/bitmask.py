"""bitmask ops: schema, fake kernel, reference and gradient. Native code adds only kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseprune.formats.bitmask import MASK_BYTES, UNIT_ROWS, BitmaskWeight, entries, unpack
from sparseprune.ops.linear import LinearFormat


def _needs(
    buffers: Sequence[Tensor], rows: int, cols: int
) -> Mapping[str, tuple[torch.dtype | None, int]]:
    units = -(-rows // UNIT_ROWS)
    return {
        "values": (None, 0),
        "masks": (torch.uint8, units * cols * MASK_BYTES),
        "starts": (torch.int32, units + 1),
    }


BITMASK = LinearFormat("Bitmask.pack", BitmaskWeight.parts, _needs, entries, unpack)
BITMASK.register("sparseprune_triton")
