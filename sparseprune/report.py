"""What convert() did, layer by layer, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparseprune.printed import printed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Row:
    """One prunable layer.

    Attributes:
        name: its path in the model.
        kind: type of the dense layer, e.g. "Linear".
        shape: of the dense weight.
        pattern: where its zeros may be, e.g. "unstructured"; "dense" without zeros.
        sparsity: zeros / weights.
        nonzeros: weights that are not zero.
        dense_bytes, packed_bytes: of the weight; equal where dense was kept.
        dense_ms, sparse_ms: medians on the example input, all calls summed; None if not measured.
        kernel: what runs now, e.g. "csr/groups avx512 + activation", or "dense".
        block: columns of a block of the packed weight; 0 where it has none.
        reason: why dense was kept; "" where it was not.
        tied_to: the layer above with the same weight, which totals count once; "" for most.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pattern: str
    sparsity: float
    nonzeros: int
    dense_bytes: int
    packed_bytes: int
    dense_ms: float | None = None
    sparse_ms: float | None = None
    kernel: str = "dense"
    block: int = 0
    reason: str = ""
    tied_to: str = ""


@dataclass
class Report:
    """Rows of :class:`Row`, and the whole model's medians in ms. Prints as a table."""

    rows: list[Row] = field(default_factory=list)
    dense_ms: float | None = None
    sparse_ms: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float | None:
        """dense_ms / sparse_ms of the whole model; None if it was not measured."""
        if self.dense_ms is None or self.sparse_ms is None:
            return None
        return self.dense_ms / self.sparse_ms

    @property
    def dense_bytes(self) -> int:
        """Bytes of all the weights in rows when dense."""
        return sum(r.dense_bytes for r in self.rows if not r.tied_to)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all the weights in rows as they are now, indices included."""
        return sum(r.packed_bytes for r in self.rows if not r.tied_to)

    @property
    def nonzeros(self) -> int:
        """Nonzero weights in rows."""
        return sum(r.nonzeros for r in self.rows if not r.tied_to)

    @property
    def kernels(self) -> dict[str, int]:
        """Kernel -> number of layers."""
        return dict(Counter(r.kernel for r in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "speedup": self.speedup}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of :meth:`to_dict`."""
        rows = [Row(**{**r, "shape": tuple(r["shape"])}) for r in data["rows"]]
        return cls(rows, data["dense_ms"], data["sparse_ms"], list(data["notes"]))

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title="sparseprune.convert", caption=self._caption(), show_lines=False)
        for heading in ("layer", "kind", "shape", "sparsity", "bytes", "dense ms", "sparse ms"):
            table.add_column(heading, justify="left" if heading in ("layer", "kind") else "right")
        table.add_column("kernel")
        table.add_column("block", justify="right")
        table.add_column("why dense", overflow="fold")
        for r in self.rows:
            table.add_row(
                r.name,
                r.kind,
                "x".join(map(str, r.shape)),
                f"{r.sparsity:.1%}",
                f"{r.dense_bytes:,} > {r.packed_bytes:,}",
                _ms(r.dense_ms),
                _ms(r.sparse_ms),
                r.kernel,
                str(r.block or "-"),
                r.reason,
            )
        return table

    def __str__(self) -> str:
        return printed(self, 160)

    def _caption(self) -> str:
        lines = [f"weights: {self.dense_bytes:,} bytes dense, {self.packed_bytes:,} now"]
        if self.speedup is not None:
            lines.append(
                f"whole model: {_ms(self.dense_ms)} ms dense, {_ms(self.sparse_ms)} ms now "
                f"({self.speedup:.2f}x)"
            )
        return "\n".join([*lines, *self.notes])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
