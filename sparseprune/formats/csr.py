"""Unstructured sparsity: an index for every nonzero. Layouts: csrc/formats/csr.h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseprune.errors import bad, suggest
from sparseprune.formats import csr_groups, csr_rows, csr_sorted
from sparseprune.formats.base import DTYPES, Clamp, Format, PackedWeight, Pair
from sparseprune.formats.csr_blocks import MAX_BLOCK, block_width

LAYOUTS = {"groups": csr_groups, "sorted": csr_sorted, "rows": csr_rows}
"""Files name the layout of what a program derives by its place here: append, never reorder."""
PIECE = 2**21
"""Weights packed at a time: what packing needs in between stays in the caches."""


@dataclass(frozen=True)
class Csr(Format):
    """Compressed sparse rows in one of three layouts: float32, "rows" in Linear layers half too.

    "groups" lets four rows share the activations that they load: many tokens, 40 to 70 %
    sparsity. "sorted" lets pairs of rows share them and keeps its loops predictable: many tokens,
    above 70 %. "rows" is plain CSR: few tokens, or very high sparsity.

    Args:
        layout: ``"groups"``, ``"sorted"`` or ``"rows"``.
        block: columns of a block in "groups" and "sorted", 1 to 255, best a multiple of 16;
            None: as :func:`sparseprune.formats.csr_blocks.block_width` says.
    """

    layout: str = "groups"
    block: int | None = None
    stem: ClassVar[str] = "csr"
    serves: ClassVar[tuple[str, ...]] = ("Linear", "Conv1d", "Conv2d", "Conv3d")

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise bad("Csr", "layout", f"one of {', '.join(LAYOUTS)}", repr(self.layout),
                      suggest(self.layout, LAYOUTS))  # fmt: skip
        most = 0 if self.layout == "rows" else MAX_BLOCK
        if self.block is not None and (type(self.block) is not int or not 1 <= self.block <= most):
            expected = f"1 to {most}, or None" if most else "None, for the layout has no blocks"
            raise bad("Csr", "block", expected, repr(self.block), "leave it out")

    @property
    def name(self) -> str:
        return f"csr/{self.layout}" + (f"/{self.block}" if self.block else "")

    def refuses(self, weight: Tensor, groups: int = 1) -> str | None:
        if weight.dim() != 2:
            return f"csr holds matrices, the weight has {weight.dim()} dimensions; flatten(1) it"
        if weight.dtype not in (DTYPES if self.layout == "rows" else DTYPES[:1]):
            return f"csr holds float32, the weight is {str(weight.dtype).removeprefix('torch.')}"
        if weight.numel() >= 2**31:
            return "csr counts nonzeros in 32 bits, the weight is larger"
        rows, cols = weight.shape
        layout = LAYOUTS[self.layout]
        if cols > layout.MAX_COLS:
            return f"{self.name} indexes {layout.MAX_COLS} inputs, the weight has {cols}"
        if groups > 1 and rows // groups % layout.BOUND_ROWS:
            return (
                f"{self.name} needs outputs per group divisible by {layout.BOUND_ROWS}, "
                f"got {rows // groups}"
            )
        return None

    def lacking(self, backend: str, layer: nn.Module | None = None) -> str | None:
        return _lacking(backend, self.layout)

    def worth(self, weight: Tensor, tokens: int) -> bool:
        return weight.device.type == "cuda" or weight.dtype == torch.float32  # else widened

    def pack(self, weight: Tensor, groups: int = 1) -> CsrWeight:
        reason = self.refuses(weight, groups)
        if reason:
            raise bad("Csr.pack", "weight", "one that the format holds", reason, "keep it dense")
        packed = _joined(list(self._pieces(weight.detach(), groups)))
        return CsrWeight(self.layout, *weight.shape, **packed).use()

    def _pieces(self, weight: Tensor, groups: int) -> Iterator[dict[str, Any]]:
        """The buffers of rows, or of columns in whole blocks, in the order in which they lie."""
        rows, cols = weight.shape
        if self.layout == "rows":
            yield from map(csr_rows.pack, weight.split(max(1, PIECE // max(1, cols))))
            return
        block = self.block or block_width(cols)
        width = block * max(1, PIECE // max(1, rows * block))
        for piece in weight.split(width, dim=1):
            if self.layout == "groups":
                yield csr_groups.pack(piece, block, groups)
            else:
                yield csr_sorted.pack(piece, block)


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Pieces as one: starts count on."""
    if len(pieces) == 1:
        return pieces[0]
    joined = {
        name: torch.cat([p[name] for p in pieces]) for name in ("values", "columns", "counts")
    }
    starts = [pieces[0]["starts"]]
    end = starts[0][-1]
    for piece in pieces[1:]:
        starts.append(piece["starts"][1:] + end)
        end = end + piece["starts"][-1]
    return {**joined, "block": pieces[0]["block"], "starts": torch.cat(starts)}


class CsrWeight(PackedWeight):
    """A packed weight [rows, cols].

    Buffers: values float32 ("rows": or half), columns uint16 or uint8, counts uint8, starts int32.
    """

    stem = "csr"
    parts = ("values", "columns", "counts", "starts")

    def __init__(
        self,
        layout: str,
        rows: int,
        cols: int,
        block: int,
        values: Tensor,
        columns: Tensor,
        counts: Tensor,
        starts: Tensor,
    ) -> None:
        super().__init__(rows, cols)
        self.layout, self.block = layout, block
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("counts", counts)
        self.register_buffer("starts", starts)

    values: Tensor
    columns: Tensor
    counts: Tensor
    starts: Tensor

    @property
    def name(self) -> str:
        return f"csr/{self.layout}"

    @property
    def format(self) -> Csr:
        """What packs a weight of this size as this one is."""
        return Csr(self.layout, self.block or None)

    @property
    def nonzeros(self) -> int:
        return self.values.numel()

    def adopt(self, other: CsrWeight) -> None:
        """Take the layout and the buffers of another packing of the same weight.

        What keeps the block beside the weight must follow: ``ByProgram.follow`` and
        ``Program.follow``.

        Raises:
            ValueError: another size.
        """
        if other.shape != self.shape:
            raise bad("CsrWeight.adopt", "other", f"of shape {tuple(self.shape)}",
                      tuple(other.shape), "pack the same weight")  # fmt: skip
        self.layout, self.block = other.layout, other.block
        self._buffers.update(other._buffers)

    def lacking(self, backend: str) -> str | None:
        return _lacking(backend, self.layout)

    def spec(self) -> dict[str, Any]:
        return {"layout": self.layout, "rows": self.rows, "cols": self.cols, "block": self.block}

    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The buffers in the order that the ops take them."""
        held = self._buffers  # the attributes would go through Module.__getattr__, 2 us in all
        return held["values"], held["columns"], held["counts"], held["starts"]  # type: ignore[return-value]

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def linear(self, x: Tensor, bias: Tensor | None, clamp: Clamp = (None, None)) -> Tensor:
        y: Tensor = self._ops.csr_linear(
            x, *self.packed(), bias, self.rows, self.cols, self.block, *clamp
        )
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
        y: Tensor = self._ops.csr_conv2d(
            x,
            *self.packed(),
            bias,
            self.rows,
            self.cols,
            self.block,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            *clamp,
        )
        return y

    def convolve(self, x: Tensor, bias: Tensor | None, program: str) -> Tensor:
        y: Tensor
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            y = self._ops.csr_conv(x, *self.packed(), bias, program)
        else:  # the same, past the Python that gives it a gradient
            weights = self.packed() if bias is None else (*self.packed(), bias)
            y = self._ops.run.default([x], weights, program)[0]
        return y

    def unpack(self) -> Tensor:
        return unpack(*self.packed(), self.rows, self.cols, self.block)


def _lacking(backend: str, layout: str) -> str | None:
    """What sparseprune/triton/csr.py does not serve."""
    if backend != "triton" or layout == "rows":
        return None
    return f"multiplies csr/rows, got csr/{layout}"


def entries(
    columns: Tensor, counts: Tensor, starts: Tensor, rows: int, cols: int, block: int
) -> tuple[Tensor, Tensor]:
    """Row and column (int64) of every value, in the order of the values."""
    if block == 0:
        return csr_rows.entries(columns, starts, rows)
    if counts.shape[-1] == csr_sorted.PAIR:
        return csr_sorted.entries(columns, counts, rows, block)
    return csr_groups.entries(columns, counts, block)


def bound_rows(counts: Tensor) -> int:
    """Rows that must not belong to two groups of a convolution, by the counts of a weight."""
    last = counts.shape[-1]  # may be symbolic, which no dictionary finds
    if last == csr_sorted.PAIR:
        return csr_sorted.BOUND_ROWS
    if last == csr_groups.NUMBERED:
        return csr_groups.SEGMENT
    return csr_groups.BOUND_ROWS if last == csr_groups.PATTERNS else csr_rows.BOUND_ROWS


def unpack(
    values: Tensor,
    columns: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    cols: int,
    block: int,
) -> Tensor:
    """The dense weight [rows, cols]."""
    row, column = entries(columns, counts, starts, rows, cols, block)
    dense = values.new_zeros(rows, cols)
    dense[row, column] = values
    return dense
