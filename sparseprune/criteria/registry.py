"""Criteria by name."""

from __future__ import annotations

from sparseprune.criteria.apoz import apoz
from sparseprune.criteria.bn_scale import bn_scale
from sparseprune.criteria.correlation import Correlation
from sparseprune.criteria.entropy import Entropy
from sparseprune.criteria.filter_norm import FilterNorm
from sparseprune.criteria.fpgm import fpgm
from sparseprune.criteria.grad_cam import grad_cam
from sparseprune.criteria.gradient import gradient
from sparseprune.criteria.grasp import grasp
from sparseprune.criteria.han import han
from sparseprune.criteria.insensitive import insensitive
from sparseprune.criteria.interface import Criterion
from sparseprune.criteria.lobs import LOBS
from sparseprune.criteria.magnitude import magnitude, magnitude_l2
from sparseprune.criteria.maxout import Maxout
from sparseprune.criteria.mean_activation import mean_activation
from sparseprune.criteria.movement import movement
from sparseprune.criteria.nisp import NISP
from sparseprune.criteria.obd import OBD
from sparseprune.criteria.obd_activation import OBDActivation
from sparseprune.criteria.obs import OBS
from sparseprune.criteria.oracle import Oracle
from sparseprune.criteria.random import Random
from sparseprune.criteria.reconstruction import reconstruction
from sparseprune.criteria.regularised import Regularised
from sparseprune.criteria.similarity import similarity
from sparseprune.criteria.skeletonization import skeletonization
from sparseprune.criteria.snip import snip
from sparseprune.criteria.sparsegpt import SparseGPT
from sparseprune.criteria.synflow import synflow
from sparseprune.criteria.taylor import Taylor2, taylor, taylor_samples
from sparseprune.criteria.taylor_activation import TaylorActivation
from sparseprune.criteria.wanda import Wanda
from sparseprune.errors import bad, bad_type, suggest

CRITERIA: dict[str, Criterion] = {
    # of the weights alone
    "magnitude": magnitude,
    "magnitude_l2": magnitude_l2,
    "han": han,
    "random": Random(),
    # of weights, from data and a loss
    "gradient": gradient,
    "taylor": taylor,
    "taylor_samples": taylor_samples,
    "taylor2": Taylor2(),
    "obd": OBD(),
    "obd_fisher": OBD("fisher"),
    "obd_gauss_newton": OBD("gauss_newton"),
    "obs": OBS(),
    "snip": snip,
    "grasp": grasp,
    # of weights, from data
    "lobs": LOBS(),
    "sparsegpt": SparseGPT(),
    "wanda": Wanda(),
    "correlation": Correlation(),
    "synflow": synflow,
    # of weights, from a Trajectory
    "movement": movement,
    "insensitive": insensitive,
    # of units, from the weights alone
    "filter_l1": FilterNorm(1),
    "filter_l2": FilterNorm(2),
    "fpgm": fpgm,
    "similarity": similarity,
    "bn_scale": bn_scale,
    # of units, from data
    "apoz": apoz,
    "mean_activation": mean_activation,
    "entropy": Entropy(),
    "nisp": NISP(),
    "maxout": Maxout(),
    # of units, from data and a loss
    "taylor_activation": TaylorActivation(),
    "obd_activation": OBDActivation(),
    "skeletonization": skeletonization,
    "grad_cam": grad_cam,
    "oracle": Oracle(),
    "regularised": Regularised(),
    # of input channels, from data
    "reconstruction": reconstruction,
}


def resolve(criterion: str | Criterion, operation: str = "prune") -> Criterion:
    """The criterion of that name, or the callable itself; an error with near matches otherwise."""
    expected = "a known name or a callable (weight) -> score"
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            way_out = suggest(criterion, CRITERIA)
            raise bad(operation, "criterion", expected, repr(criterion), way_out)
        return CRITERIA[criterion]
    if isinstance(criterion, type) or not callable(criterion):
        raise bad_type(operation, "criterion", expected, repr(criterion), suggest("", CRITERIA))
    return criterion


def name_of(criterion: Criterion) -> str:
    """Its name in `CRITERIA`, or what the callable calls itself."""
    for name, known in CRITERIA.items():
        if known is criterion:
            return name
    return getattr(criterion, "__name__", type(criterion).__name__)
