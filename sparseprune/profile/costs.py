"""What profile() found, layer by layer and in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparseprune.printed import printed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class LayerProfile:
    """One layer that multiplies, summed over its calls in one forward pass.

    Attributes:
        name: its path in the model.
        kind: its type, or the op where a module multiplies activations by themselves.
        runs: "dense", the packed format, or "not called".
        tied_to: the first name of its weight, where that is another layer's; "" otherwise.
        calls: in one forward pass.
        parameters, nonzeros: of the layer, bias included.
        macs: if every weight were multiplied.
        nonzero_macs: of the weights that are not zero.
        executed_macs: what the layer in place multiplies: all, or the packed weights.
        dense_bytes, stored_bytes: of the parameters, dense and as they are, indices included.
        activation_bytes: read and written in all calls.
        latency_ms: median in the running model, all calls summed; None if not measured.
    """

    name: str
    kind: str
    runs: str = "dense"
    tied_to: str = ""
    calls: int = 0
    parameters: int = 0
    nonzeros: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    executed_macs: int = 0
    dense_bytes: int = 0
    stored_bytes: int = 0
    activation_bytes: int = 0
    latency_ms: float | None = None

    @property
    def moved_bytes(self) -> int:
        """Activations, and the stored parameters once per call."""
        return self.activation_bytes + self.calls * self.stored_bytes

    @property
    def intensity(self) -> float:
        """FLOP per byte moved; FLOP = 2 executed MACs."""
        return 2 * self.executed_macs / max(1, self.moved_bytes)


@dataclass
class Profile:
    """Rows of :class:`LayerProfile` and totals. Prints as a table.

    Attributes:
        parameters, nonzeros: of the whole model, normalisation and embeddings included, tied
            tensors once; a packed weight counts with its zeros in `parameters`.
        dense_bytes, stored_bytes: of those parameters.
        latency_ms: median of the whole model; None if not measured.
        not_counted: layers with weights whose MACs are unknown.
        notes: what else limits the numbers.
    """

    rows: list[LayerProfile] = field(default_factory=list)
    parameters: int = 0
    nonzeros: int = 0
    dense_bytes: int = 0
    stored_bytes: int = 0
    latency_ms: float | None = None
    not_counted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """MACs if every weight were multiplied."""
        return sum(row.macs for row in self.rows)

    @property
    def nonzero_macs(self) -> int:
        """MACs of the weights that are not zero."""
        return sum(row.nonzero_macs for row in self.rows)

    @property
    def executed_macs(self) -> int:
        """MACs that the layers in place really do."""
        return sum(row.executed_macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes that the layers in rows read and write; other modules are not included."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Zeros / parameters."""
        return 1 - self.nonzeros / max(1, self.parameters)

    @property
    def intensity(self) -> float:
        """FLOP per byte moved by the layers in rows; FLOP = 2 executed MACs."""
        return 2 * self.executed_macs / max(1, sum(row.moved_bytes for row in self.rows))

    def shares(self) -> dict[str, float]:
        """Share of the dense MACs: {"conv": ..., "linear": ..., "other": ...}."""
        totals = {"conv": 0, "linear": 0, "other": 0}
        for row in self.rows:
            conv, linear = "Conv" in row.kind, row.kind.endswith("Linear")
            totals["conv" if conv else "linear" if linear else "other"] += row.macs
        return {kind: macs / max(1, self.macs) for kind, macs in totals.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: attributes, derived numbers and rows."""
        names = ("macs", "nonzero_macs", "executed_macs", "activation_bytes", "sparsity")
        rows = [{**asdict(row), "intensity": row.intensity} for row in self.rows]
        derived = {name: getattr(self, name) for name in (*names, "intensity")}
        return {**asdict(self), **derived, "shares": self.shares(), "rows": rows}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title="sparseprune.profile", caption=self._caption(), caption_justify="left")
        for heading in ("layer", "kind", "runs"):
            table.add_column(heading, overflow="fold")
        for heading in ("calls", "parameters", "nonzero", "MACs", "nonzero", "executed",
                        "weight bytes", "activations", "FLOP/B", "ms"):  # fmt: skip
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(row.name, row.kind, row.runs, str(row.calls), *_cells(row))
        table.add_section()
        table.add_row("whole model", "", "", "", *_cells(self))
        return table

    def __str__(self) -> str:
        return printed(self, 170)

    def _caption(self) -> str:
        lines = ["1 MAC = 2 FLOP; norms, activations, pooling and embeddings are not counted"]
        if self.not_counted:
            lines.append(f"MACs not counted: {', '.join(self.not_counted)}")
        return "\n".join([*lines, *self.notes])


def _cells(item: LayerProfile | Profile) -> list[str]:
    """The numbers of one line of the table."""
    counts = (item.parameters, item.nonzeros, item.macs, item.nonzero_macs, item.executed_macs)
    stored_bytes = _si(item.stored_bytes)
    if item.stored_bytes != item.dense_bytes:
        stored_bytes = f"{_si(item.dense_bytes)} > {stored_bytes}"
    ms = "-" if item.latency_ms is None else f"{item.latency_ms:.3f}"
    moved = _si(item.activation_bytes)
    return [*map(_si, counts), stored_bytes, moved, f"{item.intensity:.1f}", ms]


def _si(number: int) -> str:
    """1234567 -> "1.23 M"; whole numbers below a thousand stay as they are."""
    value, units = float(number), iter(" kMGT")
    unit = next(units)
    while value >= 999.5 and unit != "T":
        value, unit = value / 1000, next(units)
    return str(number) if unit == " " else f"{value:.3g} {unit}"
