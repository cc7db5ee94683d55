"""What `make gpu-check` does around its kernels: cases, caps, budget, stages, tables."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu import bench, cases, check, measure
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.caps import cap, computed_share, ridge
from benchmarks.gpu.cases import PROBLEMS, Case, Problem
from benchmarks.gpu.check import Outcome, Stage
from benchmarks.gpu.results import NO_TIME, Row, best, read_csv, table, write_csv
from sparseprune.formats import FORMATS
from sparseprune.patterns import resolve

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


class Time:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_shared_out_and_runs_out() -> None:
    now = Time()
    budget = Budget(60, now)
    assert budget.left() == 60 and budget.share(20) == 20 and budget.share(90) == 60
    now.now += 45
    assert (budget.left(), budget.share(20), budget.share(20, keep=10)) == (15, 15, 5)
    now.now += 10
    assert budget.share(20, keep=10) == 0
    now.now += 100
    assert budget.left() == 0


# --- cases and caps


def test_cases_are_what_the_library_knows() -> None:
    stems = {name for f in FORMATS for name in (f.stem, f.name)} | {"nm"}
    titles = [(p.title, c.title) for p in PROBLEMS for c in p.cases]
    assert len(set(titles)) == len(titles) >= 20
    for problem in PROBLEMS:
        assert getattr(torch, problem.dtype) in measure.TOLERANCE
        for case in problem.cases:
            resolve(case.pattern)
            assert 0 < case.sparsity < 1 and case.formats
            assert {name.partition(":")[0] for name in case.formats} <= stems


def test_what_is_to_be_reached_has_a_case() -> None:
    def targets(**wanted: object) -> set[float | None]:
        return {
            case.target
            for problem in PROBLEMS
            for case in problem.cases
            for values in [{**vars(problem), **vars(case)}]
            if all(values[name] == value for name, value in wanted.items())
        }

    assert targets(pattern="block(64,64)", sparsity=0.9, tokens=2048) == {4.0}
    assert targets(pattern="block(64,64)", sparsity=0.9, tokens=16, rows=8192) == {4.0}
    assert targets(pattern="unstructured", sparsity=0.8, tokens=1, rows=28672) == {2.2}
    assert targets(pattern="2:4", tokens=64) == {1.35} and targets(pattern="2:4", tokens=4096)
    assert targets(pattern="unstructured", dtype="float32", tokens=512) >= {1.5}
    assert targets(size=(28, 28), pattern="block(32,32,taps)", sparsity=0.9) == {2.5}


@pytest.mark.parametrize(
    ("density", "tokens", "expected"),
    [(0.5, 1, 1.78), (0.4, 8, 2.16), (0.3, 64, 2.76), (0.2, 1, 3.8), (0.2, 64, 2.87),
     (0.1, 64, 2.87), (0.2, 184, 1.0)],
)  # fmt: skip
def test_caps_of_bits_for_16_bit_weights(density: float, tokens: int, expected: float) -> None:
    """The published table: a bit per position, values of 16 bits, products of a dense layer."""
    got = cap(tokens, 184, 16, 1 + 16 * density, computed_share("bitmask", density, 16))
    assert got == pytest.approx(expected, abs=0.02)


def test_caps_of_structure() -> None:
    assert cap(1, 184, 16, 9, computed_share("nm", 0.5, 16)) == pytest.approx(16 / 9)
    assert cap(4096, 184, 16, 9, computed_share("nm", 0.5, 16)) == pytest.approx(2.0)
    assert cap(4096, 184, 16, 1.6, computed_share("block", 0.1, 16)) == pytest.approx(10)
    assert cap(512, 31, 32, 4.8, computed_share("csr", 0.1, 32)) == pytest.approx(10)
    assert ridge("NVIDIA H200", 16) == 184 and ridge("NVIDIA A100", 16) is None


# --- the benchmark, on the CPU in place of a GPU


SMALL = Problem(64, 96, 3, "float32", (
    Case("unstructured", 0.8, ("csr/rows", "csr/groups:reference", "nothing"), 1.5),
    Case("block(16,16)", 0.75, ("block:cuda", "block")),
))  # fmt: skip
SMALL_CONV = replace(SMALL, tokens=2, size=(6, 5), cols=16, cases=(
    Case("block(16,16,taps)", 0.7, ("block",)),
), dtype="bfloat16")  # fmt: skip


def test_a_problem_is_measured_beside_dense() -> None:
    rows = {row.pruned + " " + row.runs.split()[0]: row
            for row in measure.measure(SMALL, CPU, 0.0, compiled=False)}  # fmt: skip
    packed = rows["unstructured 80% csr/rows"]
    assert packed.eager_ms and packed.ms and packed.ratio == packed.eager_ms / packed.ms
    assert packed.error is not None and packed.error < 1e-5 and packed.target == 1.5
    assert "reference" in rows["unstructured 80% csr/groups"].runs
    assert rows["unstructured 80% nothing"].note == "this version has no format nothing"
    assert rows["unstructured 80% nothing"].ms is None
    assert "one that serves cpu, got 'cuda'" in rows["block(16,16) 75% block:cuda"].note
    assert rows["block(16,16) 75% block/16x16"].ms
    (conv,) = measure.measure(SMALL_CONV, CPU, 0.0, compiled=False)
    assert conv.runs.startswith("block/16x16") and conv.ms and (conv.error or 1) < 2e-2


def test_a_wrong_output_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseprune.nn import SparseLinear

    right = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: right(self, x) * 1.01)
    rows = list(measure.measure(SMALL, CPU, 0.0, compiled=False))
    ran = [row for row in rows if row.error is not None]
    assert ran and all(row.ms is None and "wrong by" in row.note for row in ran)


def test_the_benchmark_ends_in_time_with_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = Time()
    budget = Budget(20, now)

    def slow(problem: Problem, device: torch.device, seconds: float, compiled: bool):  # type: ignore[no-untyped-def]
        assert not compiled, "no time for that"
        now.now += 8
        yield Row(problem.title, problem.cases[0].title, "csr/rows x", 2.0, None, 1.0, 4.0)

    monkeypatch.setattr(bench, "measure", slow)
    problems = [replace(SMALL, rows=n) for n in (1, 2, 3, 4)]
    rows = bench.run(problems, CPU, budget, tmp_path)
    assert [row.note for row in rows] == ["", "", *[NO_TIME] * 4]
    again = read_csv(tmp_path / "gpu.csv")
    assert again[0].ratio == 2.0 and again[0].share_of_cap == 0.5 and len(again) == 6
    with (tmp_path / "gpu.csv").open() as file:
        line = next(csv.DictReader(file))
    assert line["device"] == "cpu" and line["torch"] == torch.__version__
    assert (line["ratio"], line["share_of_cap"], line["compile_ms"]) == ("2", "0.5", "")
    assert (tmp_path / "gpu.png").exists() or "no picture" in capsys.readouterr().out


def test_the_command_times_on_any_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "CASE_S", 0.0)
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "60"]
    problems = (replace(SMALL, cases=SMALL.cases[:1]), SMALL_CONV)
    assert bench.main([*arguments, "--only", "3 tokens"], problems) == 0
    shown = capsys.readouterr().out
    assert "64x96, 3 tokens, float32" in shown and "3x3" not in shown
    assert bench.main(["--device", "cuda"], problems) == 2 or torch.cuda.is_available()


def test_the_table_has_the_best_row_of_every_case() -> None:
    rows = [
        Row("a", "90%", "slow", 2.0, None, 2.0, target=1.5),
        Row("a", "90%", "fast", 2.0, 1.8, 0.9, 4.0, 1.5),
        Row("b", "50%", "", note=NO_TIME, target=2.0),
    ]
    assert [row.runs for row in best(rows)] == ["fast", ""]
    lines = table(rows).splitlines()
    assert len(lines) == 3 and lines[0].startswith("layer")
    assert lines[1].split() == ["a", "90%", "fast", "1.8000", "0.9000", "2.00", "4.00", "1.50",
                                "reached"]  # fmt: skip
    assert lines[2].endswith(NO_TIME)


# --- the command


def stage(name: str, code: str, most: float = 60, **more: float) -> Stage:
    return Stage(name, (sys.executable, "-c", code), most, **more)


def test_stages_run_one_by_one_and_keep_their_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hang = "import subprocess, sys, time; print('begun', flush=True); time.sleep(60)"
    found = check.carry_out(
        [
            stage("good", "import benchmarks.gpu, os; print('fine')"),
            stage("bad", "import sys; print('why'); sys.exit(3)"),
            stage("slow", hang, most=2),
            Stage("absent", ("/nonexistent/tool",), 10),
            stage("late", "print(1)", keep=1000),
        ],
        Budget(120),
        tmp_path,
    )
    assert [(o.name, o.status) for o in found] == [
        ("good", 0), ("bad", 3), ("slow", None), ("absent", None), ("late", None),
    ]  # fmt: skip
    assert (tmp_path / "good.log").read_text() == "fine\n"
    assert (tmp_path / "bad.log").read_text() == "why\n"
    assert (tmp_path / "slow.log").read_text() == "begun\n" and "ended after 2 s" in found[2].note
    assert found[4].note == "no time left" and not (tmp_path / "late.log").exists()
    write_csv([Row("a", "90%", "fast", 2.0, None, 1.0)], {"device": "x"}, tmp_path / "gpu.csv")
    capsys.readouterr()
    assert check.conclude(found, tmp_path) == 1
    shown = capsys.readouterr().out.splitlines()
    assert "status 3" in shown[1] and shown[-1].startswith("a      90%")
    with (tmp_path / "stages.csv").open() as file:
        assert [line["stage"] for line in csv.DictReader(file)] == [o.name for o in found]
    assert check.conclude([Outcome("good", 1.0, 0)], tmp_path) == 0


def test_everything_fits_into_eight_minutes(tmp_path: Path) -> None:
    assert check.SECONDS < 8 * 60 - 15
    found = check.stages((9, 0), tmp_path)
    assert [s.name for s in found][:4] == ["configure", "compile", "install", "tests"]
    most = sum(s.most for s in found)
    assert most < check.SECONDS + 40, "even if each takes its most, the keeps leave time to measure"
    assert all(s.keep >= 90 for s in found if s.most >= 60 and s.name != "configure")
    assert "-DSPARSEPRUNE_CUDA_ARCHITECTURES=90a-real" in found[0].command
    assert [check.architectures((n, 0)) for n in (7, 8, 9, 12)] == [
        "80-virtual", "80-real", "90a-real", "90-virtual",
    ]  # fmt: skip
    assert not any("pip" in word for s in found for word in s.command)
    timed = check.benchmark(Budget(100, Time()), tmp_path)
    assert timed.command[-1] == "85" and timed.most < 100


def test_what_is_missing_is_said_first() -> None:
    needed, optional = check.missing(lambda name: None if name in ("pybind11", "rich") else name)
    assert "pybind11" in needed and "rich: no tables" in optional
    assert "torch" not in needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "gpu-check: there is no GPU" in done.stderr
    assert "make gpu-check PYTHON=" in done.stderr and not (tmp_path / "out").exists()
    assert "torch is not installed" in (check.without_device(torch_found=False) or "")


def test_a_gpu_less_python_starts_the_check() -> None:
    """check.py alone must say what is missing: it may import nothing that is not Python's own."""
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'rich', 'sparseprune'): sys.modules[name] = None\n"
        "import benchmarks.gpu.check, benchmarks.gpu.cases, benchmarks.gpu.results\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert cases.PROBLEMS
