"""Estimated times of layers, for convert() with SPARSEPRUNE_TUNE=0: the same on every run.

Nanoseconds of one thread; more threads divide dense and packed alike. The constants of panels are
least squares over benchmarks/results/phases-xeon.csv (blocks of 128), which they meet within 21 %;
pairs of rows have made csr/sorted 3 to 12 % faster since.
Those for few tokens and for dense layers come from bitmask-xeon.csv, and from the same layers with
AVX2 and portable kernels: single times there are off by up to a factor of 2.2, but of its 40 cases
the model's choice took at most 1.3x the time of the fastest form in 39, and 1.8x in one. Those of
nm are from one layer of 1024 x 1024 at 1 and 4 tokens; so are those of sell, but on a Zen 4. On
another CPU only the ratios may hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparseprune.formats.bitmask import UNIT_ROWS
from sparseprune.formats.csr_blocks import block_width
from sparseprune.formats.sell import SLICE_ROWS

GATHER_TOKENS = 4
"""Up to so many tokens csr/rows gathers x where it lies (kGatherTokens in csrc)."""
GATHER_ROW = 3.0
"""Nanoseconds to add up the lanes of a row's sum."""
HOLES = 0.055
"""Holes of a random sell weight for every position: within 4 % of the places at 50 to 95 %."""
BITMASK_TOKENS = 4
"""Tokens for which bitmask expands its weights once."""
START = 0.62
"""Share of a tile of full vectors that is paid whatever their number, e.g. for broadcasts."""


@dataclass(frozen=True)
class Work:
    """What a layer computes.

    Args:
        kind: "Linear", "Conv1d", "Conv2d" or "Conv3d".
        rows, cols: of the weight as a matrix.
        nonzeros: of the weight.
        tokens: rows of input, or output pixels of all images.
        groups: of a convolution.
    """

    kind: str
    rows: int
    cols: int
    nonzeros: int
    tokens: int
    groups: int = 1


@dataclass(frozen=True)
class Constants:
    """Nanoseconds on one instruction set level; those of panels are for one tile of full vectors.

    Args:
        width, vectors: lanes of a vector, vectors of a tile.
        pack, store: per activation put into a panel, per output.
        column, group, multiply: csr/groups, per column stored for four rows, per four rows and
            block, and the least that a nonzero costs.
        nonzero, row: csr/sorted, per nonzero, per row and block.
        plain, plain_row: csr/rows, per nonzero, per row.
        gather: csr/rows at few tokens, per nonzero, and more for each token.
        bits: bitmask, per position, more for each token, and more for each nonzero.
        pairs: nm (2:4) at few tokens, per stored weight, and more for each token.
        places: sell, per place of a step, and more for each token.
    """

    width: int
    vectors: int
    pack: float
    store: float
    column: float
    group: float
    multiply: float
    nonzero: float
    row: float
    plain: float
    plain_row: float
    gather: tuple[float, float]
    bits: tuple[float, float, float]
    pairs: tuple[float, float]
    places: tuple[float, float]


PORTABLE = Constants(
    width=4, vectors=4, pack=0.28, store=0.43, column=2.3, group=35.0, multiply=0.84,
    nonzero=1.03, row=1.5, plain=0.96, plain_row=20.0, gather=(0.12, 0.41), bits=(0.72, 0.02, 1.1),
    pairs=(0.2, 0.18), places=(1.5, 0.45),
)  # fmt: skip
ISAS = {
    "avx512": Constants(
        width=16, vectors=4, pack=0.076, store=0.18, column=1.65, group=14.0, multiply=0.84,
        nonzero=0.99, row=2.2, plain=1.6, plain_row=2.0, gather=(0.06, 0.18),
        bits=(0.055, 0.006, 0.06), pairs=(0.06, 0.04), places=(0.06, 0.04),
    ),
    "avx2": Constants(
        width=8, vectors=2, pack=0.076, store=0.36, column=1.2, group=15.0, multiply=0.42,
        nonzero=0.50, row=0.68, plain=0.51, plain_row=11.0, gather=(0.22, 0.15),
        bits=(0.08, 0.03, 0.1), pairs=(0.12, 0.05), places=(0.09, 0.35),
    ),
}  # fmt: skip
"""By name of the level; others count as portable code."""

DENSE_MAC = {"AVX512": 0.0157, "AVX2": 0.033}
"""Per multiplication of a dense layer, by what torch says of the CPU: about 3/4 of the peak."""
DENSE_MAC_ELSEWHERE = 0.066
DENSE_WEIGHT, DENSE_WEIGHT_CONV = 0.15, 0.5
"""Per weight of a dense layer: reading it; a convolution also brings it into another order."""


def dense_ns(work: Work) -> float:
    """Weights x (reading + tokens x multiplying)."""
    mac = DENSE_MAC.get(torch.backends.cpu.get_cpu_capability(), DENSE_MAC_ELSEWHERE)
    weight = DENSE_WEIGHT if work.kind == "Linear" else DENSE_WEIGHT_CONV
    return work.rows * work.cols * (weight + work.tokens * mac)


def packed_ns(name: str, work: Work, engine: str) -> float:
    """Of a format by its name; infinite where the model knows nothing.

    Args:
        name: as in reports, e.g. "csr/rows".
        work: what there is to do.
        engine: instruction set level of the kernels; "reference" and devices are unknown.
    """
    cost = COSTS.get(name) or COSTS.get(name.partition("/")[0])  # whatever the grid of blocks
    if cost is None or engine in UNKNOWN:
        return math.inf
    return cost(work, ISAS.get(engine, PORTABLE))


def csr_groups(work: Work, c: Constants) -> float:
    """Per column that one of four rows keeps, and per four rows and block: exits of 15 loops."""
    groups = math.ceil(work.rows / 4)
    kept = 1 - (1 - _density(work)) ** 4
    columns, cells = groups * work.cols * kept, groups * _blocks(work)
    tile = max(columns * c.column + cells * c.group, work.nonzeros * c.multiply)
    return _panels(work, c, tile)


def csr_sorted(work: Work, c: Constants) -> float:
    """Per nonzero, and per row and block: its sums."""
    return _panels(work, c, work.nonzeros * c.nonzero + work.rows * _blocks(work) * c.row)


def csr_rows(work: Work, c: Constants) -> float:
    """Per nonzero and per row; Linear layers with few tokens gather, token by token."""
    if work.kind == "Linear" and work.tokens <= GATHER_TOKENS:
        first, each = c.gather
        return work.nonzeros * (first + work.tokens * each) + work.rows * GATHER_ROW
    return _panels(work, c, work.nonzeros * c.plain + work.rows * c.plain_row)


def bitmask(work: Work, c: Constants) -> float:
    """Per position and per nonzero, for every four tokens anew."""
    position, token, nonzero = c.bits
    padded = math.ceil(work.rows / UNIT_ROWS) * UNIT_ROWS * work.cols
    passes = math.ceil(work.tokens / BITMASK_TOKENS)
    return passes * (padded * position + work.nonzeros * nonzero) + padded * work.tokens * token


def sell(work: Work, c: Constants) -> float:
    """Per place, a hole or not."""
    first, each = c.places
    places = work.nonzeros + HOLES * work.rows * work.cols
    return places * (first + work.tokens * each) + work.rows * GATHER_ROW / SLICE_ROWS


def block(work: Work, c: Constants) -> float:
    """Per stored weight; the zeros of a layer that is worth it lie in blocks."""
    return _panels(work, c, work.nonzeros * c.multiply + work.rows * c.row)


def nm(work: Work, c: Constants) -> float:
    """Per stored weight of 2:4, be it zero; Linear layers with few tokens read x where it lies."""
    stored = max(work.nonzeros, work.rows * work.cols // 2)
    if work.kind == "Linear" and work.tokens <= GATHER_TOKENS:
        first, each = c.pairs
        return stored * (first + work.tokens * each) + work.rows * GATHER_ROW
    return _panels(work, c, stored * c.plain)


UNKNOWN = ("reference", "cuda", "triton", "wgmma", "cusparselt")
"""Engines that the model knows nothing about."""
COSTS: dict[str, Callable[[Work, Constants], float]] = {
    "csr/groups": csr_groups,
    "csr/sorted": csr_sorted,
    "csr/rows": csr_rows,
    "bitmask": bitmask,
    "sell": sell,
    "block": block,
    "nm": nm,
}


def _panels(work: Work, c: Constants, tile: float) -> float:
    """Tiles of tokens, activations packed before and sums stored after."""
    vectors = math.ceil(work.tokens / c.width)
    tiles = START * math.ceil(vectors / c.vectors) + (1 - START) * vectors / c.vectors
    packed = work.cols * work.groups * c.pack
    return tiles * tile + vectors * c.width * (packed + work.rows * c.store)


def _density(work: Work) -> float:
    return work.nonzeros / max(1, work.rows * work.cols)


def _blocks(work: Work) -> int:
    return math.ceil(work.cols / block_width(max(1, work.cols)))
