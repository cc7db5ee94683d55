"""sparseprune: prune a network, then make its zeros pay.

masks = sparseprune.prune(model, sparsity=0.9)
fast = sparseprune.convert(model, example_inputs)
print(fast.report)
"""

from __future__ import annotations

from sparseprune import criteria, nn, ops, quantise, schedules, training
from sparseprune.budgets import Budgeted, Sensitivity, prune_to, sensitivity
from sparseprune.convert import convert
from sparseprune.info import info
from sparseprune.io import load, save
from sparseprune.masks import Masks
from sparseprune.profile import Profile, profile
from sparseprune.prune import prune
from sparseprune.pruning import Pruner, recalibrate
from sparseprune.report import Report
from sparseprune.version import __version__

__all__ = [
    "Budgeted",
    "Masks",
    "Profile",
    "Pruner",
    "Report",
    "Sensitivity",
    "__version__",
    "convert",
    "criteria",
    "info",
    "load",
    "nn",
    "ops",
    "profile",
    "prune",
    "prune_to",
    "quantise",
    "recalibrate",
    "save",
    "schedules",
    "sensitivity",
    "training",
]
