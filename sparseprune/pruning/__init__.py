"""Pruning while a model trains: the Pruner, callbacks for trainers, and BN recalibration."""

from sparseprune.pruning.pruner import Pruner
from sparseprune.pruning.recalibrate import recalibrate

__all__ = ["Pruner", "recalibrate"]
