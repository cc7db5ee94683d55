"""Entropy: units whose activation varies little from image to image carry little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.base import Layer, Observer, Units
from sparseprune.errors import bad


class UnitEntropy(Observer):
    """-sum_m P_m log P_m over `bins` of the unit's mean over positions: [units], nats."""

    name = "unit_entropy"
    uses_units = True

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def on_units(self, layer: Layer, units: Units) -> None:
        """Keeps one number per sample and unit."""
        self.rows.setdefault(layer.name, []).append(units.by_unit().double().mean(2))

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Bins of equal width over the range of the whole layer."""
        values = torch.cat(self.rows[layer.name])
        low, high = values.aminmax()
        width = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
        place = ((values - low) / width * self.bins).long().clamp_(0, self.bins - 1)
        counts = values.new_zeros(values.shape[1], self.bins)
        counts.scatter_add_(1, place.T, torch.ones_like(values.T))
        entropy: Tensor = torch.special.entr(counts / len(values)).sum(1)
        return entropy.to(layer.weight.device)


@dataclass(frozen=True)
class Entropy:
    """-sum_m P_m log P_m, P_m the share of samples whose pooled activation is in bin m.

    Higher is kept. Activations are averaged over positions, then put into `bins` of equal width
    over the range of all units of the layer. (Luo & Wu, 2017, arXiv:1706.05791.)
    Wants many samples: fewer than bins leave most of them empty. Needs data, no loss; [units],
    float64, in nats; [samples, units] numbers are kept for each layer.
    """

    bins: int = 100
    granularity: Granularity = "unit"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise bad("Entropy", "bins", "at least 2", self.bins, "pass e.g. 100")

    @property
    def needs(self) -> tuple[partial[UnitEntropy]]:
        """The entropy of every unit."""
        return (partial(UnitEntropy, self.bins),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        return stats["unit_entropy"]
