"""What can run here: every (format, backend, instruction set), or why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparseprune import backends
from sparseprune.backends import Backend
from sparseprune.formats import FORMATS, Format
from sparseprune.machine import isa_in_use, machine
from sparseprune.printed import printed
from sparseprune.tuning import cache_file

if TYPE_CHECKING:
    from rich.table import Table

NOTES = {
    "reference": "Python: correct, slow",
    "cuda": "not yet run on a GPU",
    "triton": "not yet run on a GPU",
    "wgmma": "64x64 blocks, where it is measured to be faster; not yet run on a GPU",
    "cusparselt": "Linear, where it is measured to be faster; not yet run on a GPU",
}


@dataclass(frozen=True)
class InfoRow:
    """One way to compute a packed layer.

    Attributes:
        format: with its layout, e.g. "csr/groups".
        backend: as in convert(backend=...).
        isa: instruction set level, or "-" where there is none.
        available: whether it can run here.
        reason: why not; "" if it can.
        note: what else to know, e.g. "in use".
    """

    format: str
    backend: str
    isa: str
    available: bool
    reason: str = ""
    note: str = ""


@dataclass
class Info:
    """Rows of :class:`InfoRow` and the machine. Prints as a table.

    ``cache`` is the file of times that convert() measured here, "" where none is kept.
    """

    rows: list[InfoRow] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    cache: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __rich__(self) -> Table:
        from rich.table import Table

        here = "\n".join(f"{key}: {'-' if v is None else v}" for key, v in self.machine.items())
        here += f"\ncache of times: {self.cache or '-'}"
        table = Table(title="sparseprune.info", caption=here, caption_justify="left")
        for heading in ("format", "backend", "isa", "available"):
            table.add_column(heading, no_wrap=True)
        table.add_column("why not, or note", overflow="fold")
        for row in self.rows:
            why = "; ".join(filter(None, (row.reason, row.note)))
            table.add_row(row.format, row.backend, row.isa, "yes" if row.available else "no", why)
        return table

    def __str__(self) -> str:
        return printed(self, 120)


def info() -> Info:
    """Every (format, backend, instruction set) of this installation: available, or why not."""
    rows = [row for f in FORMATS for backend in backends.BACKENDS for row in _rows(f, backend)]
    return Info(rows, machine(), str(cache_file() or ""))


def _rows(f: Format, backend: Backend) -> list[InfoRow]:
    note = NOTES.get(backend.name, "")
    if backend.device != "cpu" or backend.missing or backends.native is None:
        reason = backend.missing or backend.lacks(f.stem) or ""
        return [InfoRow(f.name, backend.name, "-", not reason, reason, note)]
    kernels = [kernel for kernel in backends.native.kernels() if kernel["stem"] == f.cpu_kernels]
    if not kernels:
        reason = f"this build has no {f.stem} kernels"
        return [InfoRow(f.name, backend.name, "-", False, reason, note)]
    in_use = isa_in_use()
    rows = []
    for kernel in kernels:
        isa = str(kernel["isa"])
        reason = "" if kernel["supported"] else f"this CPU has no {isa}"
        rows.append(
            InfoRow(f.name, backend.name, isa, not reason, reason, "in use" * (isa == in_use))
        )
    return rows
