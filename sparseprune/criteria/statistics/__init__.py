"""Statistics: what criteria measure, for all weights in as few passes as possible."""

from sparseprune.criteria.statistics.base import Found, Layer, Observer, Run, Statistic, Step, Units
from sparseprune.criteria.statistics.batches import Batch, Data, Loss
from sparseprune.criteria.statistics.passes import collect

__all__ = [
    "Batch",
    "Data",
    "Found",
    "Layer",
    "Loss",
    "Observer",
    "Run",
    "Statistic",
    "Step",
    "Units",
    "collect",
]
