"""Maxout: of units that compete, those that rarely win."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparseprune.criteria.interface import Granularity, Stats
from sparseprune.criteria.statistics.base import Layer, Observer, Units
from sparseprune.errors import bad


class WinShare(Observer):
    """Share of samples and positions where the unit is the largest of its group: [units]."""

    name = "win_share"
    uses_units = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def on_units(self, layer: Layer, units: Units) -> None:
        """Counts the winners; the first of equals wins."""
        z = units.by_unit()
        if z.shape[1] % self.k:
            way_out = "pass Maxout(k) of the model, or add the layer to ignore"
            expected = f"with a multiple of k={self.k} units"
            raise bad("maxout", f"layer {layer.name!r}", expected, z.shape[1], way_out)
        winners = z.unflatten(1, (-1, self.k)).argmax(2)  # [samples, groups, positions]
        wins = torch.nn.functional.one_hot(winners, self.k).sum((0, 2)).double()
        self.add(layer.name, "wins", wins.reshape(-1))
        self.add(layer.name, "count", z.shape[0] * z.shape[2])

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Wins / count."""
        return sums["wins"] / sums["count"].to(sums["wins"])


@dataclass(frozen=True)
class Maxout:
    """P[z_i = max of its group] over the data, + 1 for the most frequent winner. Higher is kept.

    Units k g ... k g + k - 1 form group g, of which the network takes the maximum. The + 1 keeps
    one unit of every group until all others are gone. (Rueda et al., 2017, arXiv:1707.06838.)
    Needs data, no loss; [units], float64. Raises ValueError for a layer whose units do not divide
    into groups of k: add layers without maxout to ignore.
    """

    k: int = 2
    granularity: Granularity = "unit"

    def __post_init__(self) -> None:
        if self.k < 2:
            raise bad("Maxout", "k", "at least 2", self.k, "pass the units of one group")

    @property
    def needs(self) -> tuple[partial[WinShare]]:
        """How often each unit wins."""
        return (partial(WinShare, self.k),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        share = stats["win_share"].reshape(-1, self.k)
        best = share.argmax(1, keepdim=True)
        return share.scatter_add(1, best, torch.ones_like(share)).reshape(-1)
