"""Criteria: what a weight is worth. One small function or class each; a higher score is kept.

A criterion maps a weight to a score of the same shape, or to one score per output unit or input
channel. What it must know of the data it declares; `statistics` measures exactly that, for all
weights in as few passes as possible, and hands it over as `stats`. See `Criterion`.
"""

from __future__ import annotations

from sparseprune.criteria.correlation import Correlation
from sparseprune.criteria.entropy import Entropy
from sparseprune.criteria.filter_norm import FilterNorm
from sparseprune.criteria.grad_cam import class_score
from sparseprune.criteria.interface import Criterion, Selects, Stats, Updates, measured
from sparseprune.criteria.lobs import LOBS
from sparseprune.criteria.magnitude import magnitude
from sparseprune.criteria.maxout import Maxout
from sparseprune.criteria.nisp import NISP
from sparseprune.criteria.obd import OBD
from sparseprune.criteria.obd_activation import OBDActivation
from sparseprune.criteria.obs import OBS
from sparseprune.criteria.oracle import Oracle
from sparseprune.criteria.pca import pca_width
from sparseprune.criteria.random import Random
from sparseprune.criteria.registry import CRITERIA, resolve
from sparseprune.criteria.regularised import Regularised
from sparseprune.criteria.scoring import Scored, score, unit_scores, weight_scores
from sparseprune.criteria.sparsegpt import SparseGPT
from sparseprune.criteria.spearman import Agreement, spearman, spearman_to_oracle
from sparseprune.criteria.taylor import Taylor2
from sparseprune.criteria.taylor_activation import TaylorActivation
from sparseprune.criteria.trajectory import Trajectory, reset_insensitive
from sparseprune.criteria.wanda import Wanda

__all__ = [
    "CRITERIA",
    "LOBS",
    "NISP",
    "OBD",
    "OBS",
    "Agreement",
    "Correlation",
    "Criterion",
    "Entropy",
    "FilterNorm",
    "Maxout",
    "OBDActivation",
    "Oracle",
    "Random",
    "Regularised",
    "Scored",
    "Selects",
    "SparseGPT",
    "Stats",
    "Taylor2",
    "TaylorActivation",
    "Trajectory",
    "Updates",
    "Wanda",
    "class_score",
    "magnitude",
    "measured",
    "pca_width",
    "reset_insensitive",
    "resolve",
    "score",
    "spearman",
    "spearman_to_oracle",
    "unit_scores",
    "weight_scores",
]
