"""Formats, each in a file of its own with the same stem as its op and kernels."""

from __future__ import annotations

from sparseprune.formats.base import Format, PackedWeight
from sparseprune.formats.bitmask import Bitmask, BitmaskWeight
from sparseprune.formats.block import Block, BlockWeight
from sparseprune.formats.csr import Csr, CsrWeight
from sparseprune.formats.nm import Nm, NmWeight
from sparseprune.formats.sell import Sell, SellWeight

FORMATS: tuple[Format, ...] = (
    Csr("groups"), Csr("sorted"), Csr("rows"), Bitmask(), Sell(), Block(), Nm(),
)  # fmt: skip
"""Every format with its layouts: what convert measures and tests walk."""

WEIGHTS: dict[str, type[PackedWeight]] = {
    "csr": CsrWeight,
    "bitmask": BitmaskWeight,
    "sell": SellWeight,
    "block": BlockWeight,
    "nm": NmWeight,
}
"""Stem -> packed weight, for loading."""

__all__ = [
    "FORMATS",
    "WEIGHTS",
    "Bitmask",
    "BitmaskWeight",
    "Block",
    "BlockWeight",
    "Csr",
    "CsrWeight",
    "Format",
    "Nm",
    "NmWeight",
    "PackedWeight",
    "Sell",
    "SellWeight",
]
