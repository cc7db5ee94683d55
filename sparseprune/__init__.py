"""sparseprune: prune a network, then make its zeros pay.

masks = sparseprune.prune(model, sparsity=0.9)
fast = sparseprune.convert(model, example_inputs)
"""

from __future__ import annotations

from sparseprune import nn, ops
from sparseprune.convert import convert
from sparseprune.masks import Masks
from sparseprune.prune import prune
from sparseprune.report import Report

__all__ = ["Masks", "Report", "convert", "nn", "ops", "prune"]
__version__ = "0.1.0"
