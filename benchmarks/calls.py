"""What a call costs beside the steps of its program, networks at 90 % zeros, as CSV.

    python -m benchmarks.calls > benchmarks/results/calls-<cpu>.csv

Three ways in turn: the model as users call it; the op `run` with the weights as a list; the sum of
what `run_times` gives for the steps.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Callable

import torch

import sparseprune
from sparseprune.machine import machine
from sparseprune.program.program import Program

from .peers.cases import CASES

NETWORKS = ("MobileNetV1", "ResNet-50", "DenseNet-121", "EfficientNet-B0", "ShuffleNetV2")
KEYS = ("cpu", "threads", "isa", "torch", "sparseprune", "date")
SECONDS = 6.0


def clocked(call: Callable[[], object]) -> Callable[[], float]:
    """Milliseconds of a call."""

    def run() -> float:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3

    return run


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    here = machine()
    out = csv.writer(sys.stdout)
    out.writerow((*KEYS, "network", "tensors", "modules", "way", "ms"))
    for case in CASES:
        if case.title not in [f"{name}, b1" for name in NETWORKS]:
            continue
        dense, x = case.pruned(0.9)
        model = sparseprune.convert(dense, x)
        (program,) = (m for m in model.modules() if isinstance(m, Program))
        given = [x], program.tensors(), program.text
        ops = torch.ops.sparseprune
        ways = {
            "call": clocked(lambda model=model, x=x: model(x)),  # type: ignore[misc]
            "op": clocked(lambda given=given, ops=ops: ops.run(*given)),  # type: ignore[misc]
            "steps": lambda given=given, ops=ops: ops.run_times(*given).sum().item(),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for way, measure in ways.items():
                measure()  # so that each finds the caches as it would leave them itself
                taken[way].append(measure())
        counts = len(given[1]), sum(1 for _ in model.modules())
        for way, ms in taken.items():
            row = (*(here[k] for k in KEYS), case.title, *counts, way)
            out.writerow((*row, f"{statistics.median(ms):.3f}"))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
