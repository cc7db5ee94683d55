"""Schedules: how much to remove, and when. Pure functions; sparsities are shares in [0, 1)."""

from sparseprune.schedules.curves import cosine, cubic, linear
from sparseprune.schedules.rounds import iterative

__all__ = ["cosine", "cubic", "iterative", "linear"]
