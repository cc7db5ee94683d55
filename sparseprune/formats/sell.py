"""Sliced ELLPACK with windows, for few rows of input. Layout: csrc/formats/sell.h."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseprune import backends
from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, Format
from sparseprune.formats.linear_weight import LinearWeight

SLICE_ROWS = 16
"""Rows whose nonzeros lie side by side."""
WINDOW = 32
"""Columns that the nonzeros of a step lie within."""
BEGIN = 16
"""Windows begin at multiples of it."""
KEPT = 0x80
"""In a column: there is a nonzero, not a hole."""
MAX_COLS = BEGIN << 16
MAX_TOKENS = 8
"""Rows of input above which layouts that share weights among more are faster."""
UNEVEN = 1.5
"""Rows are sorted where their counts spread so many times as far as those of random zeros."""
BATCH = 256
"""Slices that are packed at once: their steps fit a cache."""

Ints = npt.NDArray[np.int64]


class Sell(Format):
    """A lane for every one of 16 rows and windows of 32 columns, float32 or half; Linear layers.

    One permutation picks the inputs of 16 nonzeros, where csr/rows loads each on its own. Rows
    without a nonzero in a window leave a hole: of random weights 7 % of the places at 50 %
    sparsity, 36 % at 90 % and 50 % at 95 %. Rows of unlike counts are sorted by them, so that those
    of a slice end together. A place takes 5 bytes. On the CPU half is widened for every call.

    Source: M. Kreutzer et al., "A unified sparse matrix data format for efficient general sparse
    matrix-vector multiplication on modern processors with wide SIMD units", SIAM J. Sci. Comput.
    36 (2014), for the slices; the windows are this library's own.
    """

    stem: ClassVar[str] = "sell"
    serves: ClassVar[tuple[str, ...]] = ("Linear",)

    @property
    def name(self) -> str:
        return self.stem

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dim() != 2:
            return f"sell holds matrices, the weight has {weight.dim()} dimensions"
        if weight.dtype not in DTYPES:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"sell holds float32, float16 and bfloat16, the weight is {dtype}"
        if weight.shape[1] > MAX_COLS or weight.numel() >= 2**31:
            return f"sell counts columns up to {MAX_COLS} and steps in 32 bits"
        if groups > 1:
            return "sell serves Linear layers, not the groups of a convolution"
        return None

    def worth(self, weight: Tensor, tokens: int) -> bool:
        """Only AVX-512 can pick from a window."""
        fast = weight.device.type == "cpu" and backends.current_isa() == "avx512"
        return fast and weight.dtype == torch.float32 and tokens <= MAX_TOKENS

    def pack(self, weight: Tensor, groups: int = 1) -> SellWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Sell.pack", "weight", "one that the format holds", reason, "keep it dense")
        rows, cols = weight.shape
        order = _order((weight != 0).sum(1), cols)
        weight = weight.detach()[order.long()] if len(order) else weight.detach()
        found = (weight != 0).cpu().nonzero().numpy()
        kept = weight[weight != 0]
        parts = [_pack(*of) for of in _batches(found, rows)]
        places, columns, windows, steps = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        values = torch.zeros(len(places), dtype=weight.dtype, device=weight.device)
        filled = torch.from_numpy(columns >= KEPT).to(weight.device)
        values[filled] = kept[torch.from_numpy(places).to(weight.device)[filled]]
        buffers = {
            "values": values,
            "columns": torch.from_numpy(columns),
            "windows": torch.from_numpy(windows),
            "starts": torch.from_numpy(np.concatenate([[0], steps.cumsum()]).astype(np.int32)),
            "order": order,
        }
        return SellWeight(rows, cols, **{n: b.to(weight.device) for n, b in buffers.items()}).use()


def _order(counts: Tensor, cols: int) -> Tensor:
    """Rows sorted by their nonzeros, int32; empty where chance alone tells them apart."""
    mean = counts.double().mean() if len(counts) else counts.new_zeros((), dtype=torch.float64)
    by_chance = mean * (1 - mean / max(1, cols))
    spread = ((counts - mean) ** 2).mean() if len(counts) > SLICE_ROWS else by_chance
    even = bool(spread <= UNEVEN**2 * by_chance)
    return counts[:0].int() if even else counts.argsort(stable=True).int()


def _batches(found: Ints, rows: int) -> Iterator[tuple[Ints, Ints, int]]:
    """Columns of the nonzeros of some slices, where those of each row begin, the first's place."""
    padded = -(-rows // SLICE_ROWS) * SLICE_ROWS
    first = np.searchsorted(found[:, 0], np.arange(padded + 1))
    for row in range(0, max(1, padded), BATCH * SLICE_ROWS):
        bounds = first[row : row + BATCH * SLICE_ROWS + 1]
        yield found[bounds[0] : bounds[-1], 1], bounds - bounds[0], int(bounds[0])


def _pack(column: Ints, bounds: Ints, before: int) -> tuple[npt.NDArray[Any], ...]:
    """From left to right, a step of every slice at a time.

    Returns:
        places: which nonzero of the weight lies in each place of each step, slice by slice.
        columns: uint8, as in the format.
        windows: uint16, of every step.
        steps: of every slice.
    """
    never = np.int64(1) << 40
    column = np.append(column, never)
    at, end = bounds[:-1].copy(), bounds[1:]
    places, columns, windows, live = [], [], [], []
    while True:
        following = np.where(at < end, column[at], never)
        window = following.reshape(-1, SLICE_ROWS).min(1) // BEGIN
        alive = window < never // BEGIN
        if not alive.any():
            break
        of_window = following - np.repeat(window * BEGIN, SLICE_ROWS)
        taken = (of_window < WINDOW) & (at < end)
        places.append(at + before)
        columns.append(np.where(taken, of_window | KEPT, 0).astype(np.uint8))
        windows.append(window)
        live.append(alive)
        at += taken
    if not live:
        empty: Ints = np.zeros(0, np.int64)
        slices = np.zeros(len(end) // SLICE_ROWS, np.int64)
        return empty, empty.astype(np.uint8), empty.astype(np.uint16), slices
    kept = np.stack(live, 1)  # [slices, steps]

    def by_slice(of_steps: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        stacked = np.stack(of_steps).reshape(len(of_steps), len(kept), -1)
        of_slices: npt.NDArray[Any] = stacked.swapaxes(0, 1)[kept].reshape(-1)
        return of_slices

    return (by_slice(places), by_slice(columns), by_slice(windows).astype(np.uint16),
            kept.sum(1))  # fmt: skip


class SellWeight(LinearWeight):
    """A packed weight [rows, cols].

    Buffers: values [16 * steps] in float32 or half, columns uint8 [16 * steps], windows uint16
    [steps], starts int32 [slices + 1], order int32 [rows], empty where rows lie as they are.
    """

    stem = "sell"
    parts = ("values", "columns", "windows", "starts", "order")

    def __init__(
        self,
        rows: int,
        cols: int,
        values: Tensor,
        columns: Tensor,
        windows: Tensor,
        starts: Tensor,
        order: Tensor,
    ) -> None:
        super().__init__(rows, cols)
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("windows", windows)
        self.register_buffer("starts", starts)
        self.register_buffer("order", order)

    values: Tensor
    columns: Tensor
    windows: Tensor
    starts: Tensor
    order: Tensor

    @property
    def nonzeros(self) -> int:
        return int((self.columns >= KEPT).sum())

    def unpack(self) -> Tensor:
        return unpack(self.values, self.columns, self.windows, self.starts, self.order,
                      self.rows, self.cols)  # fmt: skip


def entries(
    values: Tensor, columns: Tensor, windows: Tensor, starts: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The nonzeros, and row and column (int64) of each, slice by slice and step by step."""
    slices = torch.arange(len(starts) - 1, device=starts.device)
    of_step = torch.repeat_interleave(slices, starts.diff(), output_size=len(windows))
    step, lane = (columns >= KEPT).view(-1, SLICE_ROWS).nonzero().unbind(-1)
    place = step * SLICE_ROWS + lane
    column = windows.long()[step] * BEGIN + (columns[place] & (KEPT - 1))
    row = of_step[step] * SLICE_ROWS + lane
    return values[place], order.long()[row] if len(order) else row, column


def unpack(
    values: Tensor,
    columns: Tensor,
    windows: Tensor,
    starts: Tensor,
    order: Tensor,
    rows: int,
    cols: int,
) -> Tensor:
    """The dense weight [rows, cols]."""
    kept, row, column = entries(values, columns, windows, starts, order)
    dense = values.new_zeros(rows, cols)
    dense[row, column] = kept
    return dense
