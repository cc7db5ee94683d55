"""The demo on a tiny budget: its numbers have the right form, its files appear, promises bite."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from sparseprune import bench, demo, zoo
from sparseprune.data import digits
from sparseprune.demo import speed
from sparseprune.demo.roundtrip import TOLERANCE, RoundTrip
from sparseprune.demo.train import accuracy, train, zero_share
from sparseprune.prune import prune

# A network that has hardly trained is pruned unevenly, and prune says so.
pytestmark = pytest.mark.filterwarnings("ignore:prune:UserWarning")

TINY = demo.Budget(
    epochs=3,
    rounds=2,
    round_epochs=2,
    allowed_drop=100,
    networks=(bench.Network("small MLP", "mlp", 4, {"width": 64, "depth": 2}),),
    sparsities=(0.5, 0.9),
    compiled=False,
    seconds=0.05,
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.DemoResult, Path, str]:
    out = tmp_path_factory.mktemp("demo")
    console = quiet()
    result = demo.run(out, seeds=1, budget=TINY, console=console)
    assert isinstance(console.file, io.StringIO)
    return result, out, console.file.getvalue()


def test_accuracy_has_a_round_per_cut(finished: tuple[demo.DemoResult, Path, str]) -> None:
    for found in finished[0].accuracies:
        assert found.compression >= 12
        assert found.compression_with_biases < found.compression
        (trial,) = found.trials
        assert [r.sparsity for r in trial.rounds] == sorted(r.sparsity for r in trial.rounds)
        assert len(trial.rounds) == TINY.rounds + 1
        assert trial.rounds[0].sparsity == 0
        assert 50 < trial.dense_accuracy <= 100


def test_round_trips_agree(finished: tuple[demo.DemoResult, Path, str]) -> None:
    trips = finished[0].round_trips
    assert [trip.title for trip in trips] == ["LeNet-300-100", "LeNet-5"]
    assert all(trip.agrees and trip.packed == trip.layers for trip in trips)


def test_speed_rows(finished: tuple[demo.DemoResult, Path, str]) -> None:
    rows = finished[0].speeds
    assert [row.sparsity for row in rows] == [0.5, 0.9]
    for row in rows:
        assert row.eager_ms > 0 and row.sparse_ms > 0
        assert row.nonzeros == pytest.approx((1 - row.sparsity) * 2 * 64 * 64, abs=2)
        assert row.kernels or row.kept_dense
        assert row.compiled_ms is None and row.compiled_note


def test_files_appear(finished: tuple[demo.DemoResult, Path, str]) -> None:
    result, out, _ = finished
    names = {file.name for file in result.files}
    assert {"accuracy.csv", "speed.csv", "accuracy.png", "speed.png"} < names
    assert {"weights_lenet_300_100.png", "weights_lenet_5.png"} < names
    for file in result.files:
        assert file.parent == out and file.stat().st_size > 100
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")


def test_speed_csv_names_the_machine(finished: tuple[demo.DemoResult, Path, str]) -> None:
    with (finished[1] / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert rows[0]["torch"] == torch.__version__
    assert int(rows[0]["threads"]) == torch.get_num_threads()
    assert rows[0]["cpu"] and rows[0]["date"]
    assert float(rows[0]["speedup"]) > 0


def test_every_step_says_what_it_does(finished: tuple[demo.DemoResult, Path, str]) -> None:
    printed = finished[2]
    for words in ("1-2  Train", "3  Convert", "4  Dense and sparse", "5  Pictures", "published"):
        assert words in printed


def test_lost_accuracy_fails(tmp_path: Path) -> None:
    strict = demo.Budget(epochs=1, rounds=1, round_epochs=1, allowed_drop=-100)
    with pytest.raises(demo.DemoError, match="points below the dense"):
        demo.run(tmp_path, seeds=1, budget=strict, console=quiet())


def test_different_logits_do_not_agree() -> None:
    assert RoundTrip("a", 0.0, TOLERANCE, 1, 1, 1, 1).agrees
    assert not RoundTrip("a", 0.0, 2 * TOLERANCE, 1, 1, 1, 1).agrees
    assert not RoundTrip("a", float("nan"), 0.0, 1, 1, 1, 1).agrees


def test_training_keeps_zeros_and_repeats() -> None:
    data = digits()
    scores = []
    for _ in range(2):
        torch.manual_seed(0)
        model = zoo.build("lenet_300_100", inputs=64)
        masks = prune(model, 0.9)
        train(model, data, 2, masks=masks)
        assert zero_share(model) == pytest.approx(0.9, abs=1e-3)
        scores.append(accuracy(model, data.x_test, data.y_test))
    assert scores[0] == scores[1]


def test_compile_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nadvice")

    monkeypatch.setattr(torch, "compile", refuse)
    rival, note = bench.compile_frozen(zoo.build("mlp", width=8), torch.randn(1, 8))
    assert rival is None
    assert note == "not here: RuntimeError: no C++ compiler"


def test_speedup_is_against_the_faster_dense() -> None:
    row = bench.BenchRow("n", 0.9, 4.0, 2.0, "", 1.0, 1, 4, 2, "1 csr", "")
    assert (row.dense_ms, row.speedup, row.speedup_eager) == (2.0, 2.0, 4.0)
    row = bench.BenchRow("n", 0.9, 4.0, None, "no compiler", 1.0, 1, 4, 2, "1 csr", "")
    assert (row.dense_ms, row.speedup) == (4.0, 4.0)


def test_wrong_outputs_are_not_timed() -> None:
    right = torch.ones(3)
    bench.check("x", right + 1e-6, right)
    with pytest.raises(ValueError, match="x output must be within"):
        bench.check("x", right + 1e-2, right)
    with pytest.raises(ValueError, match="x output must be within"):
        bench.check("x", right * float("nan"), right)


def test_a_busy_machine_is_told() -> None:
    quiet_row = bench.BenchRow("n", 0.5, 1.0, None, "", 1.0, 1, 4, 2, "", "")
    busy_row = bench.BenchRow("n", 0.9, 3.0, None, "", 1.0, 1, 4, 2, "", "")
    assert speed.disturbances([quiet_row, quiet_row]) == []
    (note,) = speed.disturbances([quiet_row, busy_row])
    assert "1.000 to 3.000 ms" in note
