"""Schedules: how much to remove, and when. Pure functions; sparsities are shares in [0, 1)."""

from sparseprune.schedules.curves import cosine, cubic, geometric, linear, one_shot
from sparseprune.schedules.regrowth import Regrowth, rigl, set_evolution
from sparseprune.schedules.rounds import iterative
from sparseprune.schedules.steps import CURVES, Curve, Schedule

__all__ = [
    "CURVES",
    "Curve",
    "Regrowth",
    "Schedule",
    "cosine",
    "cubic",
    "geometric",
    "iterative",
    "linear",
    "one_shot",
    "rigl",
    "set_evolution",
]
