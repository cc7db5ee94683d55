"""N of every M weights, packed (N:M, above all 2:4). Layout: csrc/formats/nm.h."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.errors import bad, check_count
from sparseprune.formats import nm_cusparselt
from sparseprune.formats.base import DTYPES, Clamp, Format, Pair
from sparseprune.formats.taps import taps_first

MAX_M = 16
FOUND_M = (2, 4, 8, 16)
"""Sizes of groups that are looked for, where none is given."""
UNIT = 16
"""Groups that the rows are padded to a multiple of: 64 columns of 2:4, two steps of mma.sp."""
WORTH_STORING = 1.5
"""Stored weights per nonzero above which convert does not time the format."""


@dataclass(frozen=True)
class Nm(Format):
    """At most `n` of every `m` consecutive columns of a row, with their places; float32 or half.

    Groups are those of the pattern "n:m" and start at the first column; the last may have fewer
    columns. Columns of a convolution are (channel, ky, kx), as in weight.flatten(1) and "n:m", or
    (ky, kx, channel), where the zeros of "n:m channel" fit: tensor cores read the neighbouring
    channels of such a group at once. A group with fewer nonzeros holds zeros as well.

    Args:
        n, m: kept of how many, 1 <= n < m <= 16. None: 2:4, which tensor cores multiply, where the
            zeros allow it; else what stores least of m = 2, 4, 8, 16.
        taps: kernel height x width of the convolution that it packs for (:meth:`suited`).
    """

    n: int | None = None
    m: int | None = None
    taps: int = 1
    stem: ClassVar[str] = "nm"

    def __post_init__(self) -> None:
        if (self.n is None) != (self.m is None):
            raise bad("Nm", "n and m", "both given or neither", f"{self.n}, {self.m}",
                      "leave both out")  # fmt: skip
        if self.n is None or self.m is None:
            return
        check_count("Nm", "m", self.m, least=2)
        check_count("Nm", "n", self.n)
        if self.m > MAX_M:
            raise bad("Nm", "m", f"2 to {MAX_M}", self.m, "take smaller groups")
        if self.n >= self.m:
            raise bad("Nm", "n", f"below m, {self.m}", self.n, "pass n kept of every m")

    @property
    def name(self) -> str:
        return self.stem if self.n is None else f"{self.stem}/{self.n}:{self.m}"

    def suited(self, layer: nn.Module) -> Nm:
        return replace(self, taps=math.prod(getattr(layer, "kernel_size", ())))

    def settled(self, weight: Tensor, groups: int = 1) -> Nm:
        n, m, _ = next(_ratios(weight != 0, self))
        return replace(self, n=n, m=m)

    def lacking(self, backend: str, layer: nn.Module | None = None) -> str | None:
        if self.n is None or self.m is None:
            return None
        lacks = _lacking(backend, self.n, self.m)
        if lacks or layer is None or backend != "cusparselt":
            return lacks
        if not isinstance(layer, nn.Linear):
            return "multiplies Linear layers alone"
        return nm_cusparselt.lacking(layer.weight.dtype, layer.weight.shape)

    def worth(self, weight: Tensor, tokens: int) -> bool:
        if self.taps > 1 and weight.device.type == "cpu":
            return False  # csr's programs keep images in the layout of their kernels
        found = next(_ratios(weight != 0, self), None)
        if found is None:
            return False
        n, m, _ = found
        return weight.numel() * n / m <= WORTH_STORING * int(weight.count_nonzero())

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dim() != 2:
            return f"nm holds matrices, the weight has {weight.dim()} dimensions; flatten(1) it"
        if weight.dtype not in DTYPES:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"nm holds float32, float16 and bfloat16, the weight is {dtype}"
        if weight.numel() >= 2**31 or max(weight.shape) > 2**31 - MAX_M * UNIT:
            return "nm counts weights in 32 bits, the weight is larger"
        if weight.shape[1] % self.taps:
            return f"{weight.shape[1]} inputs are not a multiple of {self.taps} taps"
        if next(_ratios(weight != 0, self), None) is None:
            return self._too_many(weight)
        return None

    def _too_many(self, weight: Tensor) -> str:
        if self.n is None or self.m is None:
            return (
                f"some group of {FOUND_M[-1]} inputs keeps all its weights; prune with "
                "pattern='2:4'"
            )
        most = _most(weight != 0, self.m)
        return (
            f"a group of {self.m} inputs keeps {most} weights, {self.n} fit; prune with "
            f"pattern='{self.n}:{self.m}'"
        )

    def pack(self, weight: Tensor, groups: int = 1) -> NmWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Nm.pack", "weight", "one that the format holds", reason, "keep it dense")
        n, m, taps = next(_ratios(weight != 0, self))
        rows, cols = weight.shape
        tiles = _groups(taps_first(weight.detach(), taps), m, UNIT)  # [rows, groups, m]
        kept = tiles != 0
        # The first zeros fill what is free; -0.0 is a zero as well, and is stored as 0.
        chosen = kept | ((~kept).cumsum(-1, dtype=torch.int8) <= n - kept.sum(-1, keepdim=True))
        values = tiles.masked_fill(~kept, 0)[chosen].view(rows, tiles.shape[1] * n)
        within = torch.arange(m, dtype=torch.uint8, device=weight.device)
        places = within.expand_as(chosen)[chosen].view(rows, values.shape[1])
        return NmWeight(rows, cols, n, m, taps, values, join_places(places, m)).use()


class NmWeight(nm_cusparselt.Derived):
    """A packed weight [rows, cols].

    Buffers: values float32, float16 or bfloat16 [rows, groups * n]; places uint8 [rows, bytes],
    where in its group every value belongs, 2 bits each for m <= 4, else 4.

    Args:
        rows, cols: of the dense weight.
        n, m: values of a group, columns of a group.
        taps: 1 where columns are in the order of the dense weight; else they are (tap, channel)
            for that many taps.

    With the backend "cusparselt" it also holds what that library computes from.
    """

    stem = "nm"
    parts = ("values", "places")

    def __init__(
        self, rows: int, cols: int, n: int, m: int, taps: int, values: Tensor, places: Tensor
    ) -> None:
        super().__init__(rows, cols)
        self.n, self.m, self.taps = n, m, taps
        self.register_buffer("values", values)
        self.register_buffer("places", places)

    values: Tensor
    places: Tensor

    @property
    def name(self) -> str:
        return f"nm/{self.n}:{self.m}"

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    def spec(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "cols", "n", "m", "taps")}

    def lacking(self, backend: str) -> str | None:
        lacks = _lacking(backend, self.n, self.m)
        if lacks or backend != "cusparselt":
            return lacks
        if self.taps != 1:
            return "multiplies Linear layers alone"
        return nm_cusparselt.lacking(self.dtype, self.shape)

    def packed(self) -> tuple[Tensor, Tensor]:
        """The buffers in the order that the ops take them."""
        held = self._buffers  # the attributes would go through Module.__getattr__
        return held["values"], held["places"]  # type: ignore[return-value]

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def linear(self, x: Tensor, bias: Tensor | None, clamp: Clamp = (None, None)) -> Tensor:
        sizes = self.rows, self.cols, self.n, self.m
        derived = () if self.compressed is None else (self.compressed,)
        y: Tensor = self._ops.nm_linear(x, *self.packed(), *derived, bias, *sizes, *clamp)
        return y

    def conv2d(
        self,
        x: Tensor,
        bias: Tensor | None,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        clamp: Clamp = (None, None),
    ) -> Tensor:
        if self.compressed is not None:
            raise bad("nm_conv2d", "backend", "one that serves Conv2d", repr(self.backend),
                      "call weight.use('auto')")  # fmt: skip
        sizes = self.rows, self.cols, self.n, self.m, self.taps
        window = kernel_size, stride, padding, dilation, groups
        y: Tensor = self._ops.nm_conv2d(x, *self.packed(), bias, *sizes, *window, *clamp)
        return y

    def unpack(self) -> Tensor:
        return unpack(*self.packed(), self.rows, self.cols, self.n, self.m, self.taps)


def unpack(
    values: Tensor, places: Tensor, rows: int, cols: int, n: int, m: int, taps: int
) -> Tensor:
    """The dense weight [rows, cols], columns in its own order."""
    groups = values.shape[1] // n
    tiles = values.new_zeros(rows, groups, m)
    within = split_places(places, m)[:, : groups * n].view(rows, groups, n)
    tiles.scatter_(2, within.long(), values.view(rows, groups, n))
    return taps_first(tiles.flatten(1)[:, :cols], max(1, cols // taps)).contiguous()


def _lacking(backend: str, n: int, m: int) -> str | None:
    """What sparse tensor cores serve (csrc/kernels/cuda/nm.cuh, cuSPARSELt)."""
    if backend not in ("cuda", "cusparselt") or (n, m) == (2, 4):
        return None
    return f"multiplies 2:4, got {n}:{m}"


def place_bits(m: int) -> int:
    """Bits of a value's place in its group: as mma.sp reads them for 2:4."""
    return 2 if m <= 4 else 4


def join_places(places: Tensor, m: int) -> Tensor:
    """Places uint8 [rows, values], several to a byte, the first in its low bits."""
    bits = place_bits(m)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=places.device)
    joined: Tensor = places.unflatten(1, (-1, 8 // bits)) << shifts
    return joined.sum(-1, dtype=torch.uint8)


def split_places(places: Tensor, m: int) -> Tensor:
    """The places uint8 [rows, values] in those bytes."""
    bits = place_bits(m)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=places.device)
    return (places[..., None] >> shifts & (1 << bits) - 1).flatten(1)


def padded_groups(cols: int, m: int) -> int:
    """Groups of a row as stored."""
    return -(-cols // (m * UNIT)) * UNIT


def _groups(matrix: Tensor, m: int, unit: int = 1) -> Tensor:
    """[rows, cols] -> [rows, groups, m], zeros past the last column."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % (m * unit)))
    return padded.view(len(matrix), padded.shape[1] // m, m)


def _most(kept: Tensor, m: int) -> int:
    """Weights that the fullest group keeps, at least 1."""
    counts = _groups(kept, m).sum(-1, dtype=torch.uint8)
    return max(1, int(counts.max())) if counts.numel() else 1


def _ratios(kept: Tensor, fmt: Nm) -> Iterator[tuple[int, int, int]]:
    """n, m and taps that hold these nonzeros, the best first."""
    orders = [taps_first(kept, fmt.taps), kept] if fmt.taps > 1 else [kept]
    n, m = (fmt.n, fmt.m) if fmt.n and fmt.m else (2, 4)
    for ordered, taps in zip(orders, (fmt.taps, 1), strict=False):
        if _most(ordered, m) <= n:
            yield n, m, taps
    if fmt.n:
        return
    found = [
        (_most(ordered, size), size, taps)
        for ordered, taps in zip(orders, (fmt.taps, 1), strict=False)
        for size in FOUND_M
    ]
    yield from sorted((f for f in found if f[0] < f[1]), key=lambda f: f[0] / f[1])
