"""Budgets: prune to so many parameters, MACs or milliseconds; how sensitive each layer is."""

from sparseprune.budgets.search import Budgeted, prune_to
from sparseprune.budgets.sensitivity import Point, Sensitivity, sensitivity

__all__ = ["Budgeted", "Point", "Sensitivity", "prune_to", "sensitivity"]
