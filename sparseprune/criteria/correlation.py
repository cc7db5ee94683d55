"""Correlation: connections between units that fire together are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics.base import Layer, Observer, Units
from sparseprune.criteria.statistics.inputs import patches


class ConnectionCorrelation(Observer):
    """r_ik = E[(a_k - mu_k)(b_i - mu_i)] / (sigma_k sigma_i) of input a_k and unit activation b_i.

    Linear layers: signed, over samples and positions. Convolutions: the mean of |r| over the
    positions that share the weight, each r over samples; inputs in the padding do not count.
    A constant unit has r = 0. Shape of the weight, float64. A convolution costs out * k numbers
    per position.
    """

    name = "connection_correlation"
    uses_units = True

    def on_units(self, layer: Layer, units: Units) -> None:
        """Adds the moments of both sides and their products."""
        a = patches(units.module, units.x.detach()).double()  # [samples, positions, groups, k]
        b = units.by_unit().double().mT  # [samples, positions, units]
        if layer.is_linear:
            a, b = a.flatten(0, 1).unsqueeze(1), b.flatten(0, 1).unsqueeze(1)
        else:
            self.add(layer.name, "real", patches(units.module, torch.ones_like(units.x[:1]))[0])
        b = b.unflatten(2, (layer.groups, -1))
        self.add(layer.name, "count", a.shape[0])
        self.add(layer.name, "a", a.sum(0))
        self.add(layer.name, "aa", a.square().sum(0))
        self.add(layer.name, "b", b.sum(0))
        self.add(layer.name, "bb", b.square().sum(0))
        self.add(layer.name, "ab", torch.einsum("npgk,npgo->pgok", a, b))

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """r from the moments."""
        n = sums["count"].to(sums["ab"])
        a, b = sums["a"] / n, sums["b"] / n
        both = sums["ab"] / n - a.unsqueeze(2) * b.unsqueeze(3)  # [positions, groups, out, k]
        variance_a = _variance(sums["aa"] / n, a).unsqueeze(2)
        variance_b = _variance(sums["bb"] / n, b).unsqueeze(3)
        scale = (variance_a * variance_b).sqrt()
        r = torch.where(scale > 0, both / scale, 0.0)
        if layer.is_linear:
            return r.reshape(layer.weight.shape)
        real = (sums["real"] > 0).unsqueeze(2)  # [positions, groups, 1, k]
        mean = (r.abs() * real).sum(0) / real.sum(0).clamp_min(1)
        return mean.reshape(layer.weight.shape)


def _variance(square: Tensor, mean: Tensor) -> Tensor:
    """E[x^2] - E[x]^2, zero where only rounding is left of it."""
    variance = square - mean.square()
    return variance.masked_fill(variance <= 1e-12 * square, 0)


@dataclass(frozen=True)
class Correlation:
    """|r_ik|, r the correlation of input unit k and output unit i over the data. Higher is kept.

    For a convolution the mean of |r| over all positions that share the weight. Unit activations
    are those after batch norm and nonlinearity. (Sun, Wang & Tang, 2016, arXiv:1512.01891.)

    apart: rank positive and negative correlations apart, as the paper does: the score is then
        the share of the connections of the same sign and layer that are no stronger, in (0, 1].
    Needs data, no loss; the score has the weight's shape, float64.
    """

    apart: bool = True
    needs = (ConnectionCorrelation,)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        r = stats["connection_correlation"]
        if not self.apart:
            return r.abs()
        score = torch.zeros_like(r)
        for sign in (r > 0, r < 0):
            strength = r[sign].abs()
            ordered = strength.sort().values
            place = torch.searchsorted(ordered, strength, right=True)
            score[sign] = place.to(r.dtype) / max(1, strength.numel())
        return score
