"""APoZ: units that are mostly zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.base import Layer, Observer, Units
from sparseprune.errors import bad

EXACT_ZEROS = ("relu", "relu6", "hardtanh", "threshold", "clamp", "clamp_min")


class ZeroShare(Observer):
    """sum_n sum_m 1[z = 0] / (N M) over samples n and positions m: [units]."""

    name = "zero_share"
    uses_units = True

    def on_units(self, layer: Layer, units: Units) -> None:
        """Counts zeros; an error for units that are never exactly zero by design."""
        if units.function not in EXACT_ZEROS:
            got = f"{units.function or 'none'!r} behind {layer.name!r}"
            way_out = "add the layer to ignore, or use 'mean_activation'"
            raise bad("apoz", "activation", "a ReLU, which has exact zeros", got, way_out)
        z = units.by_unit()
        self.add(layer.name, "zeros", (z == 0).sum((0, 2)).double())
        self.add(layer.name, "count", z.shape[0] * z.shape[2])

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Zeros / count."""
        return sums["zeros"] / sums["count"].to(sums["zeros"])


@measured(ZeroShare, granularity="unit")
def apoz(weight: Tensor, stats: Stats) -> Tensor:
    """1 - APoZ, APoZ = sum_n sum_m 1[z = 0] / (N M), z after the ReLU. Higher is kept.

    The share of samples and positions where the unit is active; high average percentage of zeros
    goes first. (Hu et al., 2016, arXiv:1607.03250.) Needs data, no loss; [units],
    float64. Raises ValueError for a layer without a ReLU behind it: GELU and SiLU have no zeros.
    """
    return 1 - stats["zero_share"]
