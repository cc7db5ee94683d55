"""python -m benchmarks.gpu.check --out FOLDER: build, test and time on a GPU, within a budget.

Needs no environment of its own and no network: everything runs with the Python that runs it, from
this checkout. What is missing is said first; what can run without it does. Every stage writes its
log into the folder, a stage that takes too long is ended, and what it wrote stays.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from .budget import Budget

ROOT = Path(__file__).parents[2]
SECONDS = 450.0
"""Of everything; a machine may be lent for eight minutes."""
NEEDED = ("torch", "numpy", "pybind11", "pytest")
OPTIONAL = {
    "triton": "no Triton kernels",
    "safetensors": "no test of save and load",
    "rich": "no tables",
    "matplotlib": "no picture",
}
SMALL = "rows_65 or cols_193 or tokens_17 or offset or one_weight or 65_72 or uneven"
"""Tests that a sanitizer, which is slow, has time for."""


@dataclass(frozen=True)
class Stage:
    """One command of the check.

    Args:
        name: of its log.
        command: and its arguments.
        most: seconds that it may take ...
        keep: ... and seconds that must be left for later stages.
        environment: variables beside the inherited ones.
    """

    name: str
    command: tuple[str, ...]
    most: float
    keep: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: its exit status, None if it was ended or not begun."""

    name: str
    seconds: float
    status: int | None
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.status == 0


def run(stage: Stage, budget: Budget, out: Path) -> Outcome:
    """Runs a stage and all that it starts; the log is in `out`."""
    limit = budget.share(stage.most, stage.keep)
    if limit < 1:
        return Outcome(stage.name, 0.0, None, "no time left")
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (out / f"{stage.name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "PYTHONPATH": path, **stage.environment},
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(stage.name, 0.0, None, str(error))
        try:
            status, note = process.wait(limit), ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status, note = None, f"ended after {limit:.0f} s"
    return Outcome(stage.name, time.monotonic() - start, status, note)


def without_device(torch_found: bool = True) -> str | None:
    """Why nothing can run here, and the way out; None where there is a GPU."""
    way_out = "run this where PyTorch has CUDA and a GPU, e.g. make gpu-check PYTHON=python3.12"
    if not torch_found:
        return f"gpu-check: torch is not installed for {sys.executable}; {way_out}"
    import torch

    if torch.cuda.is_available():
        return None
    return f"gpu-check: there is no GPU: torch {torch.__version__} finds no CUDA device; {way_out}"


def missing(find: Callable[[str], object] = find_spec) -> tuple[list[str], list[str]]:
    """Packages and tools without which nothing can be built or tested, and what else is lost."""
    needed = [name for name in NEEDED if find(name) is None]
    needed += [tool for tool in ("cmake", "ninja") if tool_path(tool) is None]
    optional = [f"{name}: {loss}" for name, loss in OPTIONAL.items() if find(name) is None]
    if tool_path("nvcc") is None:
        optional.append("nvcc: no compiled CUDA kernels")
    if tool_path("compute-sanitizer") is None:
        optional.append("compute-sanitizer: no check of memory accesses")
    return needed, optional


def tool_path(name: str) -> str | None:
    """Where a tool is: beside this Python, on the path, or in the usual place of CUDA."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which(name, path=os.pathsep.join(places))


def architectures(capability: tuple[int, int]) -> str:
    """For CMAKE_CUDA_ARCHITECTURES: code for this device alone compiles in a third of the time."""
    major, _ = capability
    known = {8: "80-real", 9: "90a-real"}
    return known.get(major, "90-virtual" if major > 9 else "80-virtual")


def stages(capability: tuple[int, int], out: Path) -> list[Stage]:
    """In their order. The build does without isolation, and without pip."""
    python, build = sys.executable, ROOT / "build" / "gpu-check"
    nvcc, sanitizer = tool_path("nvcc"), tool_path("compute-sanitizer")
    configure = (
        tool_path("cmake") or "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
        f"-DCMAKE_MAKE_PROGRAM={tool_path('ninja')}", f"-DPython_EXECUTABLE={python}",
        f"-DSPARSEPRUNE_CUDA_ARCHITECTURES={architectures(capability)}",
        *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if nvcc else []),
    )  # fmt: skip
    tests = (python, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "--maxfail=40")
    found = [
        Stage("configure", configure, 60),
        Stage("compile", (configure[0], "--build", str(build)), 200, keep=120),
        Stage("install", (configure[0], "--install", str(build), "--prefix", str(ROOT)), 30),
        Stage("tests", (*tests, f"--junitxml={out / 'tests.xml'}"), 120, keep=90),
    ]
    if sanitizer:
        checked = (sanitizer, "--error-exitcode=86", "--target-processes=all", *tests, "-k", SMALL)
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else a tensor's end is not memory's end
        found.append(Stage("sanitizer", checked, 60, keep=90, environment=alone))
    return found


def benchmark(budget: Budget, out: Path) -> Stage:
    """The rest of the time."""
    seconds = budget.left() - 15
    command = (sys.executable, "-m", "benchmarks.gpu.bench", "--out", str(out),
               "--seconds", f"{seconds:.0f}")  # fmt: skip
    return Stage("benchmark", command, seconds + 10)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything was right, 1 if something was not, 2 where nothing can run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of all results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of everything")
    options = parser.parse_args(arguments)
    budget, out = Budget(options.seconds), options.out.resolve()
    if why := without_device(find_spec("torch") is not None):
        print(why, file=sys.stderr)
        return 2
    needed, optional = missing()
    for line in [*(f"missing, needed: {n}" for n in needed), *(f"missing: {o}" for o in optional)]:
        print(line, flush=True)
    if needed:
        return 2
    out.mkdir(parents=True, exist_ok=True)
    import torch

    outcomes = carry_out(stages(torch.cuda.get_device_capability(), out), budget, out)
    outcomes += carry_out([benchmark(budget, out)], budget, out)
    return conclude(outcomes, out)


def carry_out(stages: Sequence[Stage], budget: Budget, out: Path) -> list[Outcome]:
    """All stages, whatever becomes of one: without compiled kernels Triton's are still tested."""
    outcomes = []
    for stage in stages:
        print(f"== {stage.name}", flush=True)
        outcomes.append(outcome := run(stage, budget, out))
        if not outcome.good:
            print(f"   {said(outcome)}, see {out / stage.name}.log", flush=True)
    return outcomes


def said(outcome: Outcome) -> str:
    """One outcome in words."""
    if outcome.good:
        return "good"
    return outcome.note or f"failed with status {outcome.status}"


def conclude(outcomes: Sequence[Outcome], out: Path) -> int:
    """Writes stages.csv, prints the stages and, last, the table of the benchmark."""
    with (out / "stages.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "seconds", "status", "note"))
        writer.writerows((o.name, f"{o.seconds:.1f}", o.status, o.note) for o in outcomes)
    for outcome in outcomes:
        print(f"{outcome.name:10} {outcome.seconds:6.1f} s  {said(outcome)}")
    if (timed := out / "gpu.csv").exists():
        from .results import read_csv, table

        print(table(read_csv(timed)))
    return int(not all(o.good for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
