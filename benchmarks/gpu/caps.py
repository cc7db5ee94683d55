"""What the hardware allows at most: time of a dense layer / time of the same layer pruned."""

from __future__ import annotations

RIDGE = {("H200", 16): 184.0, ("H200", 32): 31.0}
"""Part of a device's name, bits of a weight -> uses of a weight from which a dense layer takes the
time of its products, not of its bytes. Measured on an H200: 4.3 TB/s, 769 to 798 TFLOP/s in 16
bits; 67 TFLOP/s in float32 by specification."""


def ridge(device: str, bits: int) -> float | None:
    """For a device that is known; else None."""
    found = (uses for (part, width), uses in RIDGE.items() if part in device and width == bits)
    return next(found, None)


def cap(uses: float, ridge: float, bits: int, stored_bits: float, share: float) -> float:
    """max(1, uses / ridge) / max(stored_bits / bits, share uses / ridge).

    Args:
        uses: of each weight, i.e. tokens or output pixels.
        ridge: of the device and dtype.
        bits: of a dense weight.
        stored_bits: of the packed weight per weight of the dense one, indices included.
        share: of the dense products that are computed, at the speed of dense ones.
    """
    return max(1.0, uses / ridge) / max(stored_bits / bits, share * uses / ridge)


def computed_share(stem: str, stored: float, bits: int) -> float:
    """Share of the dense products that a format computes, at the speed of dense ones.

    Args:
        stem: of the format.
        stored: share of the weights that it stores.
        bits: of a dense weight.
    """
    if stem == "nm":
        return 0.5  # mma.sp has twice the speed, whatever n:m
    if stem == "block" or bits == 32:
        return stored
    return 1.0  # tensor cores multiply the zeros between unstructured weights as well
