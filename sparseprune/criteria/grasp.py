"""GraSP: keep the weights that keep the gradient flowing, before training."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.curvature import HessianGradient
from sparseprune.criteria.statistics.gradients import Gradient


class GradientFlow(HessianGradient):
    """H g, after a first pass for g."""

    name = "gradient_flow"
    requires = (Gradient,)


@measured(GradientFlow)
def grasp(weight: Tensor, stats: Stats) -> Tensor:
    """w * (H g), g the gradient and H the Hessian of the mean loss. Higher is kept.

    Removing the weight changes the squared gradient norm by -2 w (H g): the weights whose removal
    lowers it most are kept, negative scores go first. The paper's score is the negative of this,
    and its highest are removed. (Wang et al., 2020, arXiv:2002.07376.)

    Meant for a network at initialisation, scope "global"; the paper divides the logits by a
    temperature of 200, which is for the given loss to do. Reads the data twice. Needs data and a
    loss; the score has the weight's shape, at least float32.
    """
    return weight * stats["gradient_flow"]
