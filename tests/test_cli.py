"""The command line: every command does its job, and every mistake is one clear line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparseprune as sp
from sparseprune import bench, cli, zoo
from sparseprune.cli import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")

COMMANDS = ("demo", "bench", "prune", "convert", "profile", "info")


@pytest.fixture
def lenet(tmp_path: Path) -> Path:
    """A file with weights of lenet_5_digits."""
    path = tmp_path / "lenet.safetensors"
    save_file(zoo.build("lenet_5_digits").state_dict(), path, {"epoch": "7"})
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: sparseprune {command}" in printed
    assert "--threads N" in printed and len(printed) > 300


def test_python_m_sparseprune() -> None:
    folder = Path(sp.__file__ or ".").parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "sparseprune", "info"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "csr/groups" in done.stdout and "reference" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "--model", "resnet51"), ("sparseprune bench: error:", "did you mean")),
        (("bench", "--model", "mlp", "--sparsity", "1.5"), ("[0, 1)", "1.5")),
        (("bench", "--model", "mlp", "--csv", "none/a.csv"), ("no folder", "none")),
        (("prune", "--sparsity", "0.5", "--out", "a"), ("--weights or --model",)),
        (("prune", "--weights", "no.st", "--sparsity", ".5", "--out", "a"), ("no file", "no.st")),
        (("profile",), ("--model",)),
        (("convert", "--model", "lenet", "--out", "a"), ("did you mean",)),
    ],
    ids=lambda value: value[0] if value[0] in COMMANDS else "",
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed and "Traceback" not in printed
    assert all(word in printed for word in words), printed


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        run("bench", "--model", "resnet51", "--debug")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_threads_must_be_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("info", "--threads", value)
    assert ended.value.code == 2
    assert "a whole number from 1 on" in capsys.readouterr().err


def test_threads_hold_for_the_command(tmp_path: Path, threads: int) -> None:
    out = tmp_path / "info.json"
    assert run("info", "--threads", 1, "--json", out) == 0
    assert json.loads(out.read_text())["machine"]["threads"] == 1
    assert torch.get_num_threads() == threads


def test_demo_passes_its_options_and_tells_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    from sparseprune import demo

    calls = []

    def fails(out: Path, seeds: int) -> None:
        calls.append((out, seeds))
        raise demo.DemoError("0.5 points were promised")

    monkeypatch.setattr(demo, "run", fails)
    assert run("demo", "--out", tmp_path, "--seeds", 2) == 1
    assert calls == [(tmp_path, 2)]
    assert capsys.readouterr().err == "sparseprune demo: 0.5 points were promised\n"


def test_bench_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"--json": tmp_path / "a.json", "--csv": tmp_path / "a.csv"}
    options = [item for pair in files.items() for item in pair]
    sparsity = ("--sparsity", 0.5, 0.9, "--batch", 3, "--threads", 1, "--seconds", 0.01)
    assert run("bench", "--model", "lenet_5_digits", *sparsity, *options) == 0
    printed = capsys.readouterr().out
    assert "lenet_5_digits" in printed and "eager" in printed and "90%" in printed
    data = json.loads(files["--json"].read_text())
    assert data["machine"]["torch"] == torch.__version__
    assert [row["sparsity"] for row in data["rows"]] == [0.5, 0.9]
    for row in data["rows"]:
        assert (row["batch"], row["threads"], row["compiled_ms"]) == (3, 1, None)
        assert row["speedup"] == pytest.approx(row["eager_ms"] / row["sparse_ms"])
        assert row["difference"] < 1e-4
        assert row["nonzeros"] < row["weights"]
    lines = list(csv.DictReader(files["--csv"].open(newline="")))
    assert [line["sparsity"] for line in lines] == ["0.5", "0.9"]
    assert lines[0]["cpu"] and lines[0]["threads"] == "1"


def test_bench_leaves_stem_and_classifier_alone() -> None:
    names = {name: bench.stem_and_classifier(zoo.build(name)) for name in ("mlp", "resnet20")}
    assert names == {"mlp": (), "resnet20": ("conv1.weight", "linear.weight")}
    assert bench.stem_and_classifier(zoo.build("vgg16_features")) == ("0.weight",)
    assert bench.stem_and_classifier(zoo.build("gpt_tiny")) == ("lm_head.weight",)
    some, everything = (
        bench.bench("lenet_5_digits", (0.9,), all_layers=flag, seconds=0.01)[0].nonzeros
        for flag in (False, True)
    )
    model = zoo.build("lenet_5_digits")
    alone = model.conv1.weight.numel() + model.fc2.weight.numel()
    assert some - everything == pytest.approx(0.9 * alone, abs=2)


def test_bench_refuses_wrong_outputs() -> None:
    right = torch.ones(3)
    assert bench.check("x", right + 1e-6, right) < 2e-6
    for wrong in (right + 1e-2, right * float("nan")):
        with pytest.raises(ValueError, match="bench: x output must be within"):
            bench.check("x", wrong, right)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        bench.bench("mlp", batch=0)


def test_bench_tells_why_it_did_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nadvice")

    monkeypatch.setattr(torch, "compile", refuse)
    network = bench.Network("small", "mlp", 2, {"width": 16, "depth": 1})
    (row,) = bench.measure([network], [0.5], seconds=0.01)
    assert (row.compiled_ms, row.dense_ms) == (None, row.eager_ms)
    assert row.compiled_note == "not here: RuntimeError: no C++ compiler"


def test_bench_speedup_is_against_the_faster_dense() -> None:
    row = bench.BenchRow("n", 0.9, 4.0, 2.0, "", 1.0, 1, 4, 2, "1 csr", "")
    assert (row.dense_ms, row.speedup, row.speedup_eager) == (2.0, 2.0, 4.0)
    assert bench.tally(["a (0.9x)", "b", "a (0.8x)"]) == "2 a; 1 b"


def test_prune_a_zoo_checkpoint(lenet: Path, tmp_path: Path) -> None:
    out, masks = tmp_path / "pruned.st", tmp_path / "masks.st"
    common = ("--weights", lenet, "--sparsity", 0.8, "--scope", "local", "--out", out)
    assert run("prune", "--model", "lenet_5_digits", *common, "--masks", masks) == 0
    before, after, kept = load_file(lenet), load_file(out), sp.Masks.load(masks)
    assert kept.sparsity() == pytest.approx(0.8, abs=1e-3)
    for name, tensor in before.items():
        expected = tensor * kept[name] if name in kept else tensor
        assert torch.equal(after[name], expected)


def test_prune_any_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"tok_embed": nn.Embedding(9, 4), "body": zoo.build("resnet20")})
    path, out = tmp_path / "any.st", tmp_path / "out.st"
    save_file(model.state_dict(), path, {"epoch": "7"})
    common = ("--weights", path, "--sparsity", 0.5, "--out", out)
    assert run("prune", *common, "--ignore", "body.linear") == 0
    assert "left alone: tok_embed.weight" in capsys.readouterr().out
    after, metadata = checkpoints.read(out)
    assert metadata == {"epoch": "7"}
    assert torch.equal(after["tok_embed.weight"], model["tok_embed"].weight)
    assert torch.equal(after["body.linear.weight"], model["body"].linear.weight)
    weights = [t for n, t in after.items() if t.dim() == 4]
    share = sum(int((t == 0).sum()) for t in weights) / sum(t.numel() for t in weights)
    assert share == pytest.approx(0.5, abs=1e-4)
    model.load_state_dict(after)


def test_tied_weights_survive_the_file(tmp_path: Path) -> None:
    out = tmp_path / "gpt.st"
    assert run("prune", "--model", "gpt_tiny", "--sparsity", 0.5, "--out", out) == 0
    model = zoo.build("gpt_tiny")
    checkpoints.load_weights(model, out)
    assert model.lm_head.weight is model.wte.weight
    assert sp.Masks.from_model(model).sparsity() == pytest.approx(0.5, abs=1e-3)


def test_wrong_files_are_named(
    lenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--sparsity", 0.5, "--out", tmp_path / "out.st")
    assert run("prune", "--model", "lenet_5", "--weights", lenet, *rest) == 2
    assert "lenet.safetensors' must be whole and of this network" in capsys.readouterr().err
    lenet.write_bytes(b"no tensors here")
    assert run("prune", "--weights", lenet, *rest) == 2
    assert "must be in safetensors format" in capsys.readouterr().err
    assert not (tmp_path / "out.st").exists()


def test_profile_counts_what_the_file_holds(
    lenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned, out = tmp_path / "pruned.st", tmp_path / "profile.json"
    common = ("--model", "lenet_5_digits", "--weights")
    run("prune", *common, lenet, "--sparsity", 0.8, "--scope", "local", "--out", pruned)
    assert run("profile", *common, pruned, "--no-latency", "--batch", 2, "--json", out) == 0
    data = json.loads(out.read_text())
    assert data["parameters"] == 114_760 and data["latency_ms"] is None
    assert data["nonzero_macs"] == pytest.approx(0.2 * data["macs"], rel=0.01)
    assert data["machine"]["threads"] and "conv2" in capsys.readouterr().out


def test_random_weights_are_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", "--model", "lenet_5_digits", "--no-latency") == 0
    assert capsys.readouterr().err == "sparseprune profile: no --weights, these are random\n"


def test_convert_then_profile_the_file(
    lenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned, fast, out = (tmp_path / name for name in ("pruned.st", "fast.st", "fast.json"))
    common = ("--model", "lenet_5_digits", "--weights")
    run("prune", *common, lenet, "--sparsity", 0.9, "--scope", "local", "--out", pruned)
    assert run("convert", *common, pruned, "--keep-dense", "never", "--out", fast) == 0
    assert fast.stat().st_size < lenet.stat().st_size / 2
    shape = ("--shape", 2, 1, 8, 8)
    assert run("profile", "--file", fast, *shape, "--no-latency", "--json", out) == 0
    data = json.loads(out.read_text())
    assert data["executed_macs"] == data["nonzero_macs"] < 0.11 * data["macs"]
    assert "bytes" in capsys.readouterr().out
    assert run("profile", "--file", fast, "--weights", pruned, *shape) == 2
    assert run("profile", "--file", fast) == 2
    assert "--model or --shape" in capsys.readouterr().err


def test_plain_pytest_does_not_collect_benchmarks() -> None:
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    plain = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert plain.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, plain.stdout + plain.stderr
    assert "test_dense" not in plain.stdout
