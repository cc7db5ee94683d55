"""PCA of activations: how many directions a layer really uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseprune.criteria.scoring import layers_of
from sparseprune.criteria.statistics import Data, Layer, Observer, Run, Units, collect
from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad
from sparseprune.selection import Ignore, prunable_weights


class UnitCovariance(Observer):
    """E[z z^T] - E[z] E[z]^T over samples and positions: [units, units], float64."""

    name = "unit_covariance"
    uses_units = True

    def on_units(self, layer: Layer, units: Units) -> None:
        """Adds the moments."""
        z = units.by_unit().double().mT.flatten(0, 1)
        self.add(layer.name, "z", z.sum(0))
        self.add(layer.name, "zz", z.T @ z)
        self.add(layer.name, "count", len(z))

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """From the moments; an error for fewer observations than units."""
        n, units = int(sums["count"]), len(sums["z"])
        if n <= units:
            way_out = "give more data: these span fewer directions than there are units"
            expected = f"more than {units} samples x positions for {layer.name!r}"
            raise bad("pca_width", "data", expected, n, way_out)
        mean = sums["z"] / n
        return sums["zz"] / n - mean.outer(mean)


def pca_width(
    model: nn.Module, data: Data, share: float = 0.999, ignore: Ignore = ()
) -> dict[str, int]:
    """min k: (lambda_1 + ... + lambda_k) / sum_i lambda_i >= share, by weight name.

    lambda: the eigenvalues, falling, of the covariance of a layer's unit activations over samples
    and positions. The width that keeps `share` of the variance; it says how many units, not which.
    1 for a layer that is constant. (Garg, Panda & Roy, 2018, arXiv:1812.06224.)

    share: in (0, 1]. data, ignore and errors as for `prune`; ValueError too for a layer with fewer
    observations than units. The model is left as it was.
    """
    if not 0 < share <= 1:
        raise bad("pca_width", "share", "a number in (0, 1]", share, "pass e.g. 0.999")
    weights = prunable_weights(model, ignore, "pca_width")
    run = Run("pca_width", unwrapped(model), layers_of(model, weights), data)
    widths = {}
    for name, covariance in collect(run, [UnitCovariance])["unit_covariance"].items():
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        reached = values.cumsum(0) >= share * values.sum() * (1 - 1e-12)
        widths[name] = int(reached.int().argmax()) + 1
    return widths
