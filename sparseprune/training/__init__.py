"""Training-time methods: what makes weights small, gates or noisy while a model trains."""

from __future__ import annotations

from sparseprune.training.dead_units import remove_dead_units
from sparseprune.training.distillation import distillation
from sparseprune.training.dropout_rate import shrink_dropout
from sparseprune.training.group_lasso import GroupLasso
from sparseprune.training.hard_concrete import HardConcrete, architecture
from sparseprune.training.lobster import Lobster
from sparseprune.training.lottery import (
    Rewind,
    Ticket,
    Trial,
    inverted,
    lottery,
    shuffled,
    top_eigenvalues,
)
from sparseprune.training.method import Method
from sparseprune.training.penalties import L1, L2
from sparseprune.training.plateau import Plateau
from sparseprune.training.sensitivity_decay import SensitivityDecay
from sparseprune.training.serene import Serene
from sparseprune.training.slimming import Slimming, channel_masks, slimming_threshold
from sparseprune.training.targeted_dropout import TargetedDropout
from sparseprune.training.telemetry import Sample, Telemetry
from sparseprune.training.variational import VariationalDropout

__all__ = [
    "L1",
    "L2",
    "GroupLasso",
    "HardConcrete",
    "Lobster",
    "Method",
    "Plateau",
    "Rewind",
    "Sample",
    "SensitivityDecay",
    "Serene",
    "Slimming",
    "TargetedDropout",
    "Telemetry",
    "Ticket",
    "Trial",
    "VariationalDropout",
    "architecture",
    "channel_masks",
    "distillation",
    "inverted",
    "lottery",
    "remove_dead_units",
    "shrink_dropout",
    "shuffled",
    "slimming_threshold",
    "top_eigenvalues",
]
