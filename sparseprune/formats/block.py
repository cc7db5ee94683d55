"""Blocks of r x c weights, those with a nonzero stored whole. Layout: csrc/formats/block.h."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.errors import bad, check_count
from sparseprune.formats.base import DTYPES, Clamp, Format, PackedWeight, Pair
from sparseprune.formats.taps import taps_first

SIDES = (64, 32, 16)
"""Of the square blocks that tensor cores multiply."""
WGMMA_SIDES, WGMMA_CAPABILITY = (64,), (9, 0)
"""Those that warpgroups multiply, and on which devices."""
MAX_SIDE = 256
START = 32
"""Weights that take as long as a block's index and the start of its loops."""
WORTH_STORING = 0.7
"""Share of the weights, blocks counted with START, above which convert does not time the format."""


@dataclass(frozen=True)
class Block(Format):
    """Every block of `rows` x `columns` weights that has a nonzero, whole; float32 or half.

    The grid is that of the pattern "block(r,c)": it starts at the first weight, and blocks at the
    lower and right edge may be smaller. Columns of a convolution are (channel, ky, kx), as in
    weight.flatten(1), or (ky, kx, channel), where blocks lie that way ("block(r,c,taps)"): tensor
    cores read the neighbouring channels of such a block at once.

    Args:
        rows, columns: of a block, 1 to 256. None: the grid and the order of columns that store
            least, found from the zeros themselves.
        taps: kernel height x width of the convolution that it packs for (:meth:`suited`).
    """

    rows: int | None = None
    columns: int | None = None
    taps: int = 1
    stem: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        if (self.rows is None) != (self.columns is None):
            raise bad("Block", "rows and columns", "both given or neither",
                      f"{self.rows}, {self.columns}", "leave both out")  # fmt: skip
        for argument, side in (("rows", self.rows), ("columns", self.columns)):
            if side is None:
                continue
            check_count("Block", argument, side)
            if side > MAX_SIDE:
                raise bad("Block", argument, f"1 to {MAX_SIDE}", side, "take smaller blocks")

    @property
    def name(self) -> str:
        if self.rows is None:
            return self.stem
        return f"{self.stem}/{self.rows}x{self.columns}" + ("/taps" if self.taps > 1 else "")

    @property
    def cpu_kernels(self) -> str:
        return "dense"  # a block is a small dense matrix

    def suited(self, layer: nn.Module) -> Block:
        return replace(self, taps=math.prod(getattr(layer, "kernel_size", ())))

    def worth(self, weight: Tensor, tokens: int) -> bool:
        if self.taps > 1 and weight.device.type == "cpu":
            return False  # csr's programs keep images in the layout of their kernels
        cost, *_ = min(_grids(weight != 0, self, 1), key=lambda g: g[0])
        return cost <= WORTH_STORING * weight.numel()

    def settled(self, weight: Tensor, groups: int = 1) -> Block:
        _, (rows, columns), taps = min(_grids(weight != 0, self, groups), key=lambda g: g[0])
        return Block(rows, columns, taps)

    def lacking(self, backend: str, layer: nn.Module | None = None) -> str | None:
        if self.rows is None:
            return None
        weight = None if layer is None else cast(Tensor, layer.weight)
        return _lacking(backend, self.rows, self.columns or 0, weight)

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dim() != 2:
            return f"block holds matrices, the weight has {weight.dim()} dimensions; flatten(1) it"
        if weight.dtype not in DTYPES:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"block holds float32, float16 and bfloat16, the weight is {dtype}"
        if weight.numel() >= 2**31 or max(weight.shape) > 2**31 - MAX_SIDE:
            return "block counts weights in 32 bits, the weight is larger"
        rows, cols = weight.shape
        if cols % self.taps:
            return f"{cols} inputs are not a multiple of {self.taps} taps"
        if groups > 1 and self.rows is not None and rows // groups % self.rows:
            return (
                f"{self.name} needs outputs per group divisible by {self.rows}, "
                f"got {rows // groups}"
            )
        return None

    def pack(self, weight: Tensor, groups: int = 1) -> BlockWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Block.pack", "weight", "one that the format holds", reason, "keep it dense")
        _, side, taps = min(_grids(weight != 0, self, groups), key=lambda grid: grid[0])
        tiles = _tiles(taps_first(weight.detach(), taps), side)  # [block rows, block columns, r, c]
        kept = _occupied(tiles != 0)
        row, column = kept.nonzero().unbind(1)
        starts = torch.zeros(len(kept) + 1, dtype=torch.int32, device=weight.device)
        starts[1:] = kept.sum(1).cumsum(0)
        rows, cols = weight.shape
        return BlockWeight(rows, cols, taps, tiles[row, column], column.int(), starts).use()


class BlockWeight(PackedWeight):
    """A packed weight [rows, cols].

    Buffers: values float32, float16 or bfloat16 [blocks, r, c]; columns int32 [blocks], in blocks;
    starts int32 [block rows + 1], where the blocks of a row of blocks begin.

    Args:
        rows, cols: of the dense weight.
        taps: 1 where columns are in the order of the dense weight; else they are (tap, channel)
            for that many taps.
    """

    stem = "block"
    parts = ("values", "columns", "starts")

    def __init__(
        self, rows: int, cols: int, taps: int, values: Tensor, columns: Tensor, starts: Tensor
    ) -> None:
        super().__init__(rows, cols)
        self.taps = taps
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("starts", starts)

    values: Tensor
    columns: Tensor
    starts: Tensor

    @property
    def name(self) -> str:
        _, r, c = self.values.shape
        return f"block/{r}x{c}"

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    def spec(self) -> dict[str, Any]:
        return {"rows": self.rows, "cols": self.cols, "taps": self.taps}

    def lacking(self, backend: str) -> str | None:
        _, r, c = self.values.shape
        return _lacking(backend, r, c, self.values)

    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers in the order that the ops take them."""
        held = self._buffers  # the attributes would go through Module.__getattr__
        return held["values"], held["columns"], held["starts"]  # type: ignore[return-value]

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def linear(self, x: Tensor, bias: Tensor | None, clamp: Clamp = (None, None)) -> Tensor:
        y: Tensor = self._ops.block_linear(x, *self.packed(), bias, self.rows, self.cols, *clamp)
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
        y: Tensor = self._ops.block_conv2d(
            x,
            *self.packed(),
            bias,
            self.rows,
            self.cols,
            self.taps,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            *clamp,
        )
        return y

    def unpack(self) -> Tensor:
        return unpack(*self.packed(), self.rows, self.cols, self.taps)


def _lacking(backend: str, r: int, c: int, like: Tensor | None) -> str | None:
    """What csrc/kernels/cuda/block.cuh and block_wgmma.cuh do not serve; `like`: a weight's dtype
    and device."""
    sides = {"cuda": SIDES, "wgmma": WGMMA_SIDES}.get(backend)
    if sides is None:
        return None
    if r != c or r not in sides:
        return f"multiplies squares of {', '.join(map(str, sorted(sides)))}, got {r}x{c}"
    if backend == "cuda" or like is None:
        return None
    if like.dtype not in (torch.float16, torch.bfloat16):
        return f"multiplies float16 and bfloat16, got {str(like.dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(like.device)
    if capability != WGMMA_CAPABILITY:
        return f"is for compute capability 9.0, {like.device} has {'.'.join(map(str, capability))}"
    return None


def rows_of(starts: Tensor, blocks: int) -> Tensor:
    """The row of blocks (int64) of every block."""
    of = torch.arange(len(starts) - 1, device=starts.device)
    return of.repeat_interleave(starts.diff(), output_size=blocks)


def unpack(
    values: Tensor, columns: Tensor, starts: Tensor, rows: int, cols: int, taps: int
) -> Tensor:
    """The dense weight [rows, cols], columns in its own order."""
    blocks, r, c = values.shape
    tiles = values.new_zeros(len(starts) - 1, -(-cols // c), r, c)
    tiles[rows_of(starts, blocks), columns.long()] = values
    matrix = tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :cols]
    return taps_first(matrix, max(1, cols // taps)).contiguous()


def _tiles(matrix: Tensor, side: Pair) -> Tensor:
    """[rows, cols] -> [block rows, block columns, r, c], zeros past the edges."""
    (rows, cols), (r, c) = matrix.shape, side
    padded = F.pad(matrix, (0, -cols % c, 0, -rows % r))
    return padded.view(-(-rows // r), r, -(-cols // c), c).transpose(1, 2)


def _occupied(tiles: Tensor) -> Tensor:
    return tiles.any(3).any(2)


def _grids(kept: Tensor, fmt: Block, groups: int) -> Iterator[tuple[int, Pair, int]]:
    """What a grid stores in weights, its sides and its taps, for every grid that may do."""
    orders = (1,) if fmt.taps == 1 else (1, fmt.taps)
    for taps in orders:
        ordered = taps_first(kept, taps)
        sides = [(fmt.rows, fmt.columns)] if fmt.rows and fmt.columns else _sides(ordered, groups)
        for r, c in sides:
            blocks = int(_occupied(_tiles(ordered, (r, c))).sum())
            yield blocks * (r * c + START), (r, c), taps


def _sides(kept: Tensor, groups: int) -> list[Pair]:
    """The tensor cores' squares, and the grid on whose lines alone the zeros begin and end."""
    per_group = len(kept) // groups if groups > 1 else 0  # blocks do not reach across groups
    own = _side(kept, per_group), _side(kept.t(), 0)
    if min(own) in SIDES:
        own = min(own), min(own)
    squares = [(side, side) for side in SIDES if per_group % side == 0]
    return [*squares, own]


def _side(kept: Tensor, period: int) -> int:
    """The largest side, up to 64, of blocks whose edges explain where rows of `kept` differ."""
    lines = ((kept[1:] != kept[:-1]).any(1).nonzero()[:, 0] + 1).tolist()
    step = math.gcd(period, *lines)
    if (square := math.gcd(step, SIDES[0])) in SIDES:
        return square
    return next(side for side in range(SIDES[0], 0, -1) if step % side == 0)
