"""The op ``run_times``: where the time of a program goes. Schema, fake kernel and reference.

It runs what ``run`` runs, with the threads that it would have, and gives in place of the outputs
the milliseconds of every step: those that the first thread spent on it, waits for the others
included; 0 for a step without work. Where threads take pieces of a batch for
themselves, the time of a step is the mean of the pieces, times the pieces per thread.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sparseprune.ops.registration import register
from sparseprune.ops.run import check, one_by_one, parse
from sparseprune.ops.run_reference import Weights

SCHEMA = "(Tensor[] inputs, Tensor[] weights, str program) -> Tensor"


def run_times_reference(inputs: Weights, weights: Weights, program: str) -> Tensor:
    """The times of the steps of the reference of ``run``, float64 [steps]."""
    steps = one_by_one(inputs, weights, program)
    stamps = [time.perf_counter()]
    stamps += [time.perf_counter() for _ in steps]
    return torch.tensor(stamps, dtype=torch.float64).diff() * 1e3


def _run_times_fake(inputs: Weights, weights: Weights, program: str) -> Tensor:
    steps = parse(program)
    check(inputs, weights, steps)
    return torch.empty(len(steps), dtype=torch.float64)


register(
    ("sparseprune", "sparseprune_reference"),
    {"run_times": SCHEMA},
    {"run_times": (run_times_reference, _run_times_fake)},
    autocast=("run_times",),
)
