"""sparseprune: prune a network, then make its zeros pay.

masks = sparseprune.prune(model, sparsity=0.9)
fast = sparseprune.convert(model, example_inputs)
print(fast.report)
"""

from __future__ import annotations

from sparseprune import criteria, nn, ops
from sparseprune.convert import convert
from sparseprune.info import info
from sparseprune.io import load, save
from sparseprune.masks import Masks
from sparseprune.profile import Profile, profile
from sparseprune.prune import prune
from sparseprune.report import Report
from sparseprune.version import __version__

__all__ = [
    "Masks",
    "Profile",
    "Report",
    "__version__",
    "convert",
    "criteria",
    "info",
    "load",
    "nn",
    "ops",
    "profile",
    "prune",
    "save",
]
