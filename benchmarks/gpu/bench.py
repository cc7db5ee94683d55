"""python -m benchmarks.gpu.bench --out FOLDER: every problem, as far as the seconds reach."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .budget import Budget
from .cases import PROBLEMS, Problem
from .measure import facts, measure
from .results import NO_TIME, Row, plot, table, write_csv

CASE_S = 0.5
"""Of timing per case."""
PROBLEM_S = 6.0
"""What a problem takes without torch.compile, to be left for each that follows."""
COMPILE_S = 25.0
"""What torch.compile(mode="max-autotune") takes."""


def parser() -> argparse.ArgumentParser:
    """Every option with its default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bench",
        description="Times packed layers beside dense ones on a GPU, L2 cold.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu-out"), help="folder of gpu.csv and gpu.png")
    add("--seconds", type=float, default=240.0, help="in all; what is not reached is noted")
    add("--only", default="", help="problems whose title contains this")
    add("--device", default="cuda", help="where to run")
    return parser


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None, problems: Sequence[Problem] = PROBLEMS) -> int:
    """0 if every output was right, 1 otherwise, 2 without a device."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA device; nothing is timed")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in problems if options.only in p.title]
    rows = run(chosen, device, Budget(options.seconds), options.out)
    print(table(rows))
    return int(any("wrong" in row.note for row in rows))


def run(problems: Sequence[Problem], device: torch.device, budget: Budget, out: Path) -> list[Row]:
    """Rows of all problems; the CSV is whole after each."""
    rows: list[Row] = []
    about = facts(device)
    for i, problem in enumerate(problems):
        rest = PROBLEM_S * (len(problems) - i)
        if budget.left() < PROBLEM_S:
            rows += (Row(problem.title, case.title, "", target=case.target, note=NO_TIME)
                     for case in problem.cases)  # fmt: skip
            continue
        print(f"{problem.title} ...", flush=True)
        try:
            compiled = budget.share(COMPILE_S, keep=rest) >= COMPILE_S
            for row in measure(problem, device, CASE_S, compiled):
                rows.append(row)
                write_csv(rows, about, out / "gpu.csv")
        except torch.cuda.OutOfMemoryError:
            rows.append(Row(problem.title, "", "", note="out of memory"))
            torch.cuda.empty_cache()
    write_csv(rows, about, out / "gpu.csv")
    try:
        plot(rows, about, out / "gpu.png")
    except ImportError as error:
        print(f"no picture: {error}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
