"""The main job end to end: train, prune, convert, save, load, compare, time, draw.

sparseprune demo            or            sparseprune.demo.run(Path("out"))
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparseprune import zoo
from sparseprune.bench import BenchRow, Network, write_csv
from sparseprune.data import digits
from sparseprune.demo import accuracy, speed
from sparseprune.demo.accuracy import Accuracy, Case, Published
from sparseprune.demo.roundtrip import TOLERANCE, RoundTrip, round_trip
from sparseprune.demo.speed import NETWORKS, SPARSITIES
from sparseprune.machine import machine

__all__ = ["Budget", "DemoError", "DemoResult", "run"]

CASES = (
    Case(
        "LeNet-300-100",
        lambda: zoo.build("lenet_300_100", inputs=64),
        Published(1.64, 1.59, "267K", "22K", 12, "92, 91, 74 %"),
    ),
    Case(
        "LeNet-5",
        lambda: zoo.build("lenet_5_digits"),
        Published(0.80, 0.77, "431K", "36K", 12, "34, 88, 92, 81 %"),
    ),
)


class DemoError(RuntimeError):
    """A promise of the demo was not kept."""


@dataclass(frozen=True)
class Budget:
    """How much work the demo does, and what it promises."""

    epochs: int = 40
    rounds: int = 8
    round_epochs: int = 12
    compression: float = 13.5
    allowed_drop: float = 1.0  # points of mean accuracy
    networks: tuple[Network, ...] = NETWORKS
    sparsities: tuple[float, ...] = SPARSITIES
    compiled: bool = True
    seconds: float = 0.5  # of timing per network and sparsity


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and wrote."""

    accuracies: list[Accuracy]
    round_trips: list[RoundTrip]
    speeds: list[BenchRow]
    files: list[Path]
    seconds: float


def run(
    out: Path | str,
    seeds: int = 3,
    budget: Budget | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Runs every step, writes tables and pictures to `out`; DemoError if a promise fails."""
    started = time.perf_counter()
    budget = budget or Budget()
    console = console or wide_console()
    missing = [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
    if missing:
        # Told now rather than after minutes of training.
        raise ImportError(f"demo: {' and '.join(missing)} missing; pip install 'sparseprune[demo]'")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    here = machine()
    console.print(f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}", style="dim")
    accuracies = _accuracy(seeds, budget, console, out)
    trips = _round_trips(accuracies, console, out)
    speeds = _speed(budget, console, out)
    pictures = _draw(accuracies, speeds, console, out)
    seconds = time.perf_counter() - started
    console.print(f"\nDone in {seconds:.0f} s. Everything is in {out}/", style="bold")
    files = [out / "accuracy.csv", out / "speed.csv", *pictures]
    return DemoResult(accuracies, trips, speeds, files, seconds)


def wide_console() -> Console:
    """The terminal, or 160 columns where the output goes to a file: tables stay in one piece."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _accuracy(seeds: int, budget: Budget, console: Console, out: Path) -> list[Accuracy]:
    data = digits()
    images = f"{len(data.x_train):,} training and {len(data.x_test)} test images of 8x8 pixels"
    console.rule("1-2  Train, then prune and retrain", align="left")
    console.print(
        f"  scikit-learn's handwritten digits, {images}; {seeds} seeds.\n"
        f"  Each network trains for {budget.epochs} epochs. Then {budget.rounds} rounds follow, to "
        f"{budget.compression:g}x fewer weights: the smallest are cut and the survivors\n"
        f"  retrained for {budget.round_epochs} epochs from where they are, never re-initialised "
        f"(Han et al., 2015)."
    )
    found = accuracy.measure(
        CASES,
        data,
        seeds,
        console,
        epochs=budget.epochs,
        rounds=budget.rounds,
        round_epochs=budget.round_epochs,
        compression=budget.compression,
    )
    accuracy.print_seeds(found, console)
    accuracy.print_published(found, data, console)
    _write_accuracy(found, out / "accuracy.csv")
    for result in found:
        if result.drop > budget.allowed_drop:
            raise DemoError(
                f"{result.title}: the pruned mean is {result.drop:.2f} points below the dense "
                f"one, at most {budget.allowed_drop:g} were promised"
            )
    return found


def _write_accuracy(results: list[Accuracy], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("network", "seed", "round", "sparsity", "accuracy_percent"))
        for result in results:
            for trial in result.trials:
                for number, state in enumerate(trial.rounds):
                    row = (trial.seed, number, f"{state.sparsity:.6f}", f"{state.accuracy:.4f}")
                    writer.writerow((result.title, *row))


def _round_trips(accuracies: list[Accuracy], console: Console, out: Path) -> list[RoundTrip]:
    console.rule("3  Convert, save, load in a fresh process", align="left")
    console.print(
        '  Every layer is packed whatever its speed (keep_dense="never"); the file is safetensors '
        "with a manifest, no pickle."
    )
    x = digits().x_test
    trips = [round_trip(a.title, a.trials[0].pruned, x, out) for a in accuracies]
    table = Table(title="Largest difference of logits / largest logit", title_justify="left")
    for header in ("network", "packed layers", "sparse - dense", "loaded - saved", "bytes"):
        table.add_column(header, justify="left" if header == "network" else "right")
    for trip in trips:
        table.add_row(
            trip.title,
            f"{trip.packed} of {trip.layers}",
            f"{trip.sparse_against_dense:.1e}",
            f"{trip.loaded_against_saved:.1e}",
            f"{trip.dense_bytes:,} -> {trip.file_bytes:,} on disk",
        )
    console.print(table)
    for trip in trips:
        if not trip.agrees:
            raise DemoError(
                f"{trip.title}: logits differ by {trip.sparse_against_dense:.1e} (sparse, dense) "
                f"and {trip.loaded_against_saved:.1e} (loaded, saved), allowed {TOLERANCE:.0e}"
            )
    return trips


def _speed(budget: Budget, console: Console, out: Path) -> list[BenchRow]:
    console.rule("4  Dense and sparse speed of larger networks", align="left")
    console.print(
        "  Random weights, the smallest cut layer by layer: times do not depend on training, and "
        "no accuracy is claimed here.\n"
        "  Dense is timed twice, eager and as torch.compile with frozen weights, compiled once per "
        "network as zeros do not change its time.\n"
        "  convert() times each layer dense and sparse and keeps the faster. Outputs are checked "
        "before timing."
    )
    rows = speed.measure(
        budget.networks,
        budget.sparsities,
        console,
        compiled=budget.compiled,
        seconds=budget.seconds,
    )
    speed.print_table(rows, console)
    write_csv(rows, out / "speed.csv")
    return rows


def _draw(
    accuracies: list[Accuracy], speeds: list[BenchRow], console: Console, out: Path
) -> list[Path]:
    console.rule("5  Pictures", align="left")
    import matplotlib

    # Without a display any other backend may fail.
    matplotlib.use("Agg")
    from sparseprune.demo import plots

    files = [
        plots.weight_maps(
            a.title,
            a.trials[0].pruned,
            out / f"weights_{a.title.lower().replace('-', '_')}.png",
        )
        for a in accuracies
    ]
    here = machine()
    subtitle = f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}"
    files.append(plots.accuracy_curves(accuracies, out / "accuracy.png"))
    files.append(plots.speed_curves(speeds, out / "speed.png", subtitle))
    for file in files:
        console.print(f"  {file}")
    return files
