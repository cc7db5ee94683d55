"""python -m benchmarks.pruning: run what is not there yet, print tables, draw, write the README."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from sparseprune.errors import bad, check_count, suggest
from sparseprune.machine import threads as with_threads
from sparseprune.progress import progress

from . import (
    curves,
    han,
    images,
    l0,
    lobster,
    lottery,
    plots,
    snip,
    spearman,
    tables,
    targeted,
    variational,
)
from .experiment import Experiment
from .store import Store, facts
from .training import Task

EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (han, spearman, snip, variational, targeted, l0, lobster, lottery, curves)
}
OUT = Path(__file__).parent.parent / "results" / "pruning"
EPOCHS = {"digits": 100}
"""Of training a network once; other data, with far more images in an epoch, take `FEW`."""
FEW = 10
WIDTH = 180
"""Of tables that go to a file."""

HEAD = """\
# Pruning methods on real data, beside the published numbers

Written by `python -m benchmarks.pruning` from the CSV files beside it; do not edit.
Measured: median [smallest..largest] over seeds, on the test images. Published: as printed in the
papers, `-` where they print nothing. How to run it, and on MNIST or CIFAR-10:
[benchmarks/pruning](../../pruning/README.md).
"""


def parser() -> argparse.ArgumentParser:
    """Every option with its default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning",
        description="Prunes small networks by every method, beside the published numbers.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; default: all")
    add("--seeds", type=int, default=5, help="runs of each experiment (default: 5)")
    add("--data", default="digits", metavar="FOLDER",
        help="with MNIST (IDX) or CIFAR-10 (.bin); default: scikit-learn's digits")  # fmt: skip
    add("--out", type=Path, default=OUT, help=f"folder of results (default: {OUT})")
    add("--epochs", type=int, help=f"of training once (default: digits 100, others {FEW})")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    add("--device", default="cpu", help="of networks and images (default: cpu)")
    return parser


def main(
    arguments: Sequence[str] | None = None, known: Mapping[str, Experiment] = EXPERIMENTS
) -> int:
    """0, or 2 for arguments or files that do not fit."""
    options = parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        chosen = select(options.names, known)
        for name in ("seeds", "threads"):
            check_count("pruning", f"--{name}", getattr(options, name))
        task = task_of(options)
        stores = [opened(experiment, task, options.out) for experiment in chosen]
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    console.print(f"{task.images.describe()}; {task.epochs} epochs", highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    with with_threads(options.threads), warnings.catch_warnings():
        # Floors of layers are part of what is compared; told at every cut they bury the tables.
        warnings.filterwarnings("ignore", "prune: the global ranking would have left too little")
        for experiment, store in zip(chosen, stores, strict=True):
            run(experiment, store, task, options.seeds, console)
            write_readme(options.out, known)
    return 0


def select(names: Sequence[str], known: Mapping[str, Experiment]) -> list[Experiment]:
    """The experiments of these names, all without any."""
    for name in names:
        if name not in known:
            raise bad("pruning", "NAME", "an experiment", repr(name), suggest(name, known))
    return [known[name] for name in names or known]


def task_of(options: argparse.Namespace) -> Task:
    """Images on their device, and epochs."""
    found = images.load(options.data)
    epochs = EPOCHS.get(found.name, FEW) if options.epochs is None else options.epochs
    check_count("pruning", "--epochs", epochs)
    return Task(found.to(options.device), epochs, options.device)


def opened(experiment: Experiment, task: Task, out: Path) -> Store:
    """The experiment's file; ValueError, before hours of work, if it holds something else."""
    store = Store(out / f"{experiment.name}.csv")
    store.check(facts(task))
    return store


def run(experiment: Experiment, store: Store, task: Task, seeds: int, console: Console) -> None:
    """Runs the seeds that the store does not have, saves each, then prints and draws all."""
    missing = [seed for seed in range(seeds) if seed not in store.results().seeds]
    started = time.perf_counter()
    for seed in progress(missing, f"{experiment.name}: seeds"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of dropout, noise and gates; the rest is seeded by name
            rows = list(experiment.run(task, seed))
        store.add(experiment.name, seed, rows, facts(task))
    results, seconds = store.results(), time.perf_counter() - started
    for table in tables.terminal(experiment, results, task.images.name):
        console.print(table)
    console.print(f"  What differs from the papers: {experiment.differs}", highlight=False)
    for holds, text in tables.verdicts(experiment, results):
        verdict = "holds" if holds else "does not hold"
        style = "green" if holds else "red"
        console.print(f"  {verdict}: {text}", style=style, markup=False, highlight=False)
    plots.save(experiment, results, task.images.name, store.path.with_suffix(".png"))
    console.print(f"  {store.path}: {len(missing)} new seeds in {seconds:.0f} s", style="dim")


def write_readme(out: Path, known: Mapping[str, Experiment]) -> None:
    """README.md of all results that are in the folder."""
    found = ((e, Store(out / f"{e.name}.csv")) for e in known.values())
    sections = [tables.markdown(e, store) for e, store in found if store.lines]
    (out / "README.md").write_text("\n".join([HEAD, *sections]))


if __name__ == "__main__":
    sys.exit(main())
