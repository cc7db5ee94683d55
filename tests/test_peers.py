"""The comparison with other runtimes on a tiny network: files, ratios, refusals."""

from __future__ import annotations

import csv
import importlib.util
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is not installed

from benchmarks.peers import __main__ as peers
from benchmarks.peers import runtimes, timing
from benchmarks.peers.cases import CASES, Case, prune_at_random
from benchmarks.peers.measure import check, measure
from benchmarks.peers.prepared import InProcess, Prepared
from benchmarks.peers.problem import OLD_OPSET, Problem
from benchmarks.peers.results import Row, Times
from benchmarks.peers.targets import TARGETS, reached
from benchmarks.peers.worker import burst
from sparseprune import zoo

TINY = Case("tiny MLP", lambda: zoo.build("mlp", width=64, depth=2), (4, 64))
SMALL = {"width": 32, "depth": 2, "heads": 4}
BERT = Case("BERT", lambda: zoo.build("bert_base", hidden=64, vocab=50, **SMALL), (2, 9), 50)
GPT = Case("GPT", lambda: zoo.build("gpt2", vocab=50, **SMALL), (2, 9), 50)
VIT = Case("ViT", lambda: zoo.build("vit_s16", image=32, **SMALL), (2, 3, 32, 32))
CONV = Case("conv", lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), (2, 8, 9, 9))
QUICK = ("--seconds", "0", "--pause", "0", "--sparsity", "0.5", "0.9", "--threads", "1")
FEW = ("--no-deepsparse", "--without", "torch compile")


class Wrong(runtimes.Peer):
    """Gives another output than the network's."""

    name, package = "wrong", "torch"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """One output is off."""
        wrong = problem.expected.clone()
        wrong[0, 0] += 0.01 * wrong.abs().max()
        return InProcess(lambda: wrong)


class Broken(runtimes.Peer):
    """Does not load."""

    name, package = "broken", "torch"

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        """Raises."""
        raise OSError("no such engine")


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main([*QUICK, *FEW, "--out", str(tmp_path)], [TINY]) == 0
    with (tmp_path / "peers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sparsity"] for row in rows] == ["0.5"] * 5 + ["0.9"] * 5
    timed = [row for row in rows if row["ms"]]
    assert {"sparseprune", "torch eager"} <= {row["runtime"] for row in timed}
    for row in timed:
        assert (
            float(row["min_ms"]) <= float(row["q1_ms"]) <= float(row["ms"]) <= float(row["q3_ms"])
        )
        ratio = float(row["best_dense_ms"]) / float(row["ms"])
        assert float(row["speedup"]) == pytest.approx(ratio, rel=0.01)
        assert float(row["difference"]) < (0.3 if "bf16" in row["runtime"] else 1e-4)
        assert row["torch"] == torch.__version__ and row["threads"] == "1"
        assert all(row[key] for key in ("case", "cpu", "isa", "date", "sparseprune", "best_dense"))
    assert all(row["note"] for row in rows if not row["ms"])
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert "tiny MLP" in capsys.readouterr().out


@pytest.mark.parametrize("case", [CONV, BERT, GPT, VIT], ids=lambda case: case.title)
def test_every_dense_runtime_agrees(case: Case) -> None:
    pytest.importorskip("onnx")
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    here = {name for module, name in names.items() if importlib.util.find_spec(module)}
    if not here:
        pytest.skip("neither onnxruntime nor openvino is installed")
    found = [peer for peer in runtimes.PEERS if peer.name in here]
    for row in measure(case, 0.5, found, threads=1, seconds=0, pause_s=0):
        assert not row.note and row.times is not None


@pytest.mark.parametrize("case", [BERT, GPT, VIT], ids=lambda case: case.title)
def test_old_opsets_have_attention(case: Case, tmp_path: Path) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    problem = Problem(*case.pruned(0.5), tmp_path)
    path = problem.onnx(OLD_OPSET)
    (used,) = onnx.load(path).opset_import
    assert used.version == OLD_OPSET
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": np.load(problem.npy)})
    assert not check(runtimes.DeepSparse(), torch.from_numpy(found), problem.expected)[1]


def test_old_opsets_refuse_attention_with_options(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(3, 3))

    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="attention must be without options, got mask"):
        Problem(Masked(), torch.randn(1, 2, 3, 4), tmp_path).onnx(OLD_OPSET)


def test_a_wrong_output_is_refused_and_a_broken_runtime_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", (runtimes.TorchEager(), Wrong(), Broken()))
    assert peers.main([*QUICK, "--out", str(tmp_path)], [TINY]) == 1
    with (tmp_path / "peers.csv").open(newline="") as file:
        rows = {row["runtime"]: row for row in csv.DictReader(file)}
    assert rows["torch eager"]["ms"] and rows["torch eager"]["best_dense"] == "torch eager"
    assert not rows["wrong"]["ms"] and "differs by 1.0e-02" in rows["wrong"]["note"]
    assert not rows["broken"]["ms"] and "no such engine" in rows["broken"]["note"]
    assert "refused" in capsys.readouterr().out


def test_nan_and_another_shape_are_wrong() -> None:
    expected = torch.ones(2, 3)
    peer = runtimes.TorchEager()
    assert check(peer, expected.clone(), expected) == (0.0, "")
    assert "refused" in check(peer, torch.full((2, 3), float("nan")), expected)[1]
    assert "shape (3, 2)" in check(peer, torch.ones(3, 2), expected)[1]


def test_a_missing_runtime_is_a_note(tmp_path: Path) -> None:
    peer = runtimes.DeepSparse(tmp_path / "python")
    (row,) = measure(TINY, 0.5, [peer], threads=1, seconds=0)
    assert row.times is None and row.speedup is None and "not installed" in row.note


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_masks_are_equal_shares_the_same_every_time(sparsity: float) -> None:
    (model, x), (again, x_again) = TINY.pruned(sparsity), TINY.pruned(sparsity)
    assert torch.equal(x, x_again) and torch.equal(model(x), again(x))
    for layer in (model[0], model[2]):  # type: ignore[index]
        assert int((layer.weight == 0).sum()) == round(sparsity * 64 * 64)


def test_stem_classifier_and_depthwise_stay_dense() -> None:
    model = zoo.build("mobilenet_v1")
    prune_at_random(model, 0.9)
    shares = {
        name: float((module.weight == 0).float().mean())
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    pointwise = {n for n, m in model.named_modules() if getattr(m, "kernel_size", 0) == (1, 1)}
    assert {name for name, share in shares.items() if share} == pointwise
    assert all(shares[name] == pytest.approx(0.9, abs=1e-3) for name in pointwise)


@pytest.mark.parametrize(
    ("case", "dense"), [(BERT, {"pooler"}), (GPT, {"lm_head"}), (VIT, {"patch_embed.proj", "head"})]
)
def test_of_transformers_all_layers_between_are_pruned(case: Case, dense: set[str]) -> None:
    model, _ = case.pruned(0.5)
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    dense |= {name for name, module in layers.items() if isinstance(module, nn.Embedding)}
    for name, layer in layers.items():
        assert float((layer.weight == 0).float().mean()) == (0.0 if name in dense else 0.5), name
    vectors = [vector for vector in model.parameters() if vector.dim() == 1]
    assert all(vector.unique().numel() > 1 for vector in vectors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cases", "nothing"), "part of a title"),
        (("--without", "nobody"), "names of runtimes"),
        (("--sparsity", "90"), "[0, 1)"),
        (("--targets",), "part of a title"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main(arguments, [TINY]) == 2
    assert said in capsys.readouterr().out.replace("\n", " ")


def row(runtime: str, ms: float) -> Row:
    title = "ResNet-50, b1"
    return Row(title, 0.9, runtime, Times(ms, ms, ms, ms, 2), "OpenVINO", 25.0, 0.0)


@pytest.mark.parametrize(
    ("ms", "deepsparse", "said"),
    [(10.0, 12.6, "[green]2.50x|[green]1.26x"), (10.1, 12.5, "[red]2.48x|[red]1.24x")],
)
def test_targets_say_what_was_reached(ms: float, deepsparse: float, said: str) -> None:
    table = reached([row("sparseprune", ms), row("OpenVINO", 25.0), row("DeepSparse", deepsparse)])
    assert table.row_count == 1
    _, share, dense, least, other, its = (next(iter(column.cells)) for column in table.columns)
    assert (share, least, its) == ("90%", "2.50x", "1.25x")
    assert said.split("|") == [str(dense).removesuffix("[/]"), str(other).removesuffix("[/]")]


def test_targets_are_of_cases_and_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(TARGETS) <= {case.title for case in CASES}
    assert peers.main(["--targets", "--sparsity", "0.6"]) == 2
    assert "shares with a target" in capsys.readouterr().out.replace("\n", " ")
    options = peers.parser().parse_args(["--targets", "--cases", "1 row"])
    chosen = peers.select_cases(options, CASES)
    assert [case.title for case in chosen] == [
        "4 x Linear 1024 + ReLU, 1 row",
        "Linear 4096x4096, 1 row",
    ]
    shares = peers.select_sparsities(options, chosen)
    assert shares["4 x Linear 1024 + ReLU, 1 row"] == [0.9, 0.95]


def test_list_shows_cases_and_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(case.title in shown for case in CASES)
    assert all(peer.name in shown for peer in runtimes.PEERS)


def test_burst_counts_calls_after_the_first() -> None:
    calls: list[None] = []
    assert len(burst(lambda: calls.append(None), 0, 0)) == 2 and len(calls) == 3


def test_silence_waits_for_spinning_threads() -> None:
    end = time.perf_counter() + 0.2

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    timing.fall_silent(0.02)
    assert time.perf_counter() >= end
    thread.join()
