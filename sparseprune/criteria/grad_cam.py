"""Grad-CAM: how much a class score depends on a feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.base import Layer, Units
from sparseprune.criteria.statistics.units import UnitTaylor
from sparseprune.errors import bad_type


class ClassWeight(UnitTaylor):
    """E_n |GAP(dy_n/dA)|, y_n the class score that `loss` gives for sample n: [units]."""

    name = "class_weight"

    def on_unit_gradient(self, layer: Layer, units: Units, gradient: Tensor) -> None:
        """Adds one number per sample and unit."""
        slope = units.by_unit(gradient).to(layer.dtype)
        self.add(layer.name, "sum", self.of_sample(slope * slope.shape[0]).sum(0))


@measured(ClassWeight, granularity="unit")
def grad_cam(weight: Tensor, stats: Stats) -> Tensor:
    """E_n |1/M sum_m dy_n/dA_m|, y the class score, A the unit's map of M positions.

    Higher is kept. The weight alpha that Grad-CAM gives a map (Selvaraju et al., 2017,
    arXiv:1610.02391), its size averaged over samples n. y belongs to a label: pass
    loss=`class_score` for the logit of each sample's own label, or any (output, target) -> scalar.
    Needs data and that; [units], at least float32.
    """
    return stats["class_weight"]


def class_score(output: Any, target: Any) -> Tensor:
    """1/N sum_n output[n, target_n]: the mean logit of the labels, for `grad_cam`.

    output: [N, classes] float; target: [N] int. Raises TypeError for anything else.
    """
    logits = getattr(output, "logits", output)
    fits = isinstance(logits, Tensor) and isinstance(target, Tensor)
    if not fits or logits.dim() != 2 or target.is_floating_point() or target.dim() != 1:
        way_out = "pass data of (inputs, labels), or a loss of your own"
        raise bad_type("class_score", "output", "[N, classes] with labels [N]", "others", way_out)
    return torch.gather(logits, 1, target[:, None]).mean()
