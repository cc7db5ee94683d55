"""Linear layers with few rows of input: dense torch, csr/rows, bitmask and sell in turn, as CSV.

    python benchmarks/few_rows.py > benchmarks/results/few-rows-<cpu>.csv
    python benchmarks/few_rows.py 2:4 > benchmarks/results/nm-<cpu>.csv

With a pattern n:m the zeros lie so, nm takes part, and more rows of input are measured.

4096 x 4096 lies beyond the L2 caches; of 1024 x 1024 there are four layers, one after another.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparseprune.autotune import compare_ms
from sparseprune.formats import Bitmask, Csr, Format, Nm, Sell
from sparseprune.machine import machine
from sparseprune.nn import SparseLinear
from sparseprune.patterns.nm import NM

SIZES = ((4096, 1), (1024, 4))  # width, layers
TOKENS = (1, 2, 4, 8)
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
FORMATS: tuple[Format, ...] = (Csr("rows"), Csr("sorted"), Bitmask(), Sell())
KEYS = ("cpu", "threads", "isa", "torch", "sparseprune", "date")


def stack(width: int, count: int, sparsity: float, pattern: NM | None) -> list[nn.Linear]:
    """Layers whose weights are zero at random places, or at random in the groups of a pattern."""
    layers = [nn.Linear(width, width).eval() for _ in range(count)]
    for layer in layers:
        kept = torch.rand(width, width)
        gone = kept < sparsity if pattern is None else ~pattern.legal(kept)
        layer.weight.data[gone] = 0.0
    return layers


def caller(layers: list[nn.Module], x: Tensor) -> Callable[[], object]:
    """Every layer on the same input: none waits for another's output in a cache."""
    return lambda: [layer(x) for layer in layers]


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    pattern = NM(*map(int, sys.argv[1].split(":"))) if len(sys.argv) > 1 else None
    sparsities = SPARSITIES if pattern is None else (pattern.least_sparsity,)
    formats = FORMATS if pattern is None else (*FORMATS, Csr("groups"), Nm())
    rows_of_input = TOKENS if pattern is None else (*TOKENS, 32, 128)
    here = machine()
    out = csv.writer(sys.stdout)
    out.writerow((*KEYS, "width", "layers", "sparsity", "rows", "format", "ms", "speedup"))
    for width, count in SIZES:
        for sparsity in sparsities:
            dense = stack(width, count, sparsity, pattern)
            variants: dict[str, list[nn.Module]] = {"dense": list(dense)}
            for f in formats:
                variants[f.name] = [SparseLinear.from_dense(layer, f) for layer in dense]
            for tokens in rows_of_input:
                x = torch.randn(tokens, width)
                ms = compare_ms({name: caller(v, x) for name, v in variants.items()}, seconds=1)
                for name, taken in ms.items():
                    times = f"{taken:.4f}", f"{ms['dense'] / taken:.2f}"
                    out.writerow(
                        (*(here[k] for k in KEYS), width, count, sparsity, tokens, name, *times)
                    )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
