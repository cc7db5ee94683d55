"""Step 4: larger networks at several sparsities, dense and sparse timed in the same run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sparseprune import bench
from sparseprune.bench import BenchRow, Network

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
UNSTEADY = 1.5
"""Largest over smallest time of the same work on a quiet machine."""

NETWORKS = (
    Network("MLP 4x1024, 128 rows", "mlp", 128),
    Network("MLP 4x1024, 1 row", "mlp", 1),
    Network("VGG-16 convolutions, 1 image 32x32", "vgg16_features", 1),
)


def measure(
    networks: Sequence[Network],
    sparsities: Iterable[float],
    console: Console,
    *,
    compiled: bool = True,
    seconds: float = 0.5,
) -> list[BenchRow]:
    """bench.measure() on all layers, with a progress bar over its steps."""
    sparsities = tuple(sparsities)
    steps = len(networks) * (len(sparsities) + 1 + compiled)  # one to build, one to compile
    columns = (
        TextColumn("  {task.description:<50}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, completed=-1)

        def announce(step: str) -> None:
            progress.update(task, description=step, advance=1)

        rows = bench.measure(
            networks, sparsities, compiled=compiled, seconds=seconds, announce=announce
        )
        progress.update(task, completed=steps)
    return rows


def print_table(rows: list[BenchRow], console: Console) -> None:
    """Every row of the comparison, and what to keep in mind when reading it."""
    console.print(bench.table(rows))
    if any(row.speedup < 1 <= row.speedup_eager for row in rows):
        console.print(
            "  Below 1x against the best: convert() compares with the eager layers it replaces, "
            "and there torch.compile makes dense faster still.",
            style="dim",
        )
    for note in disturbances(rows):
        console.print(f"  {note}", style="yellow")


def disturbances(rows: list[BenchRow]) -> list[str]:
    """Networks whose dense time, which zeros cannot change, differed between sparsities."""
    notes = []
    for network, group in groupby(rows, lambda row: row.network):
        times = [row.eager_ms for row in group]
        if max(times) > UNSTEADY * min(times):
            notes.append(
                f"{network}: dense eager took {min(times):.3f} to {max(times):.3f} ms, so the "
                f"machine was busy with other work; trust its speedups only roughly"
            )
    return notes
