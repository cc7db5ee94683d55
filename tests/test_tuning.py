"""Times of layers are kept on disk and used again, whatever the state of the file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_models import prune_
from scripted_times import script_times
from torch import nn

import sparseprune
from sparseprune import convert, machine, tuning
from sparseprune.nn import SparseLinear
from sparseprune.tuning import Times, cache_file

Calls = list[dict[str, float]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was timed, at times of half dense for packed layers and more for programs."""
    return script_times(monkeypatch, ms)


def ms(name: str) -> float:
    return {"dense": 1.0, "csr/rows": 0.4, "programs": 0.8}.get(name, 0.5)


def layers_timed(calls: Calls, convert_: Callable[[], nn.Module]) -> int:
    """How many layers a conversion times: whole models go by other names."""
    before = len(calls)
    convert_()
    return sum(not {"layers", "programs"} & set(call) for call in calls[before:])


def layer(density: float = 0.2, outputs: int = 12) -> nn.Module:
    return prune_(nn.Sequential(nn.Linear(20, outputs)), density)


def twice(calls: Calls, first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> int:
    """How many layers the second conversion times after the first."""
    assert layers_timed(calls, first) >= 1
    return layers_timed(calls, second)


def small() -> nn.Module:
    return convert(layer(), torch.randn(6, 20))


# The cache file


def test_a_known_layer_is_not_timed_again(folder: Path, calls: Calls) -> None:
    first = small()
    assert not first.report.notes
    assert layers_timed(calls, small) == 0
    again = small()
    assert again.report.notes == ["times of 1 layers from the cache"]
    assert again.report.rows == first.report.rows
    assert again[0].weight.name == "csr/rows" and again.report.speedup == 2.0


def test_only_the_winner_is_packed_and_checked(
    folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    packed = []
    pack = sparseprune.formats.Csr.pack
    monkeypatch.setattr(
        sparseprune.formats.Csr, "pack", lambda f, *a: packed.append(f.name) or pack(f, *a)
    )
    small()
    assert packed == ["csr/rows"]
    right = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: right(self, x) * 1.01)
    wrong = small()
    assert type(wrong[0]) is nn.Linear
    assert "its output differs from dense" in wrong.report.rows[0].reason


@pytest.mark.parametrize(
    ("other", "timed"),
    [
        (lambda: convert(layer(), torch.randn(7, 20)), 1),
        (lambda: convert(layer(), torch.randn(2, 3, 20)), 1),
        (lambda: convert(layer(), torch.randn(20, 6).t()), 1),
        (lambda: convert(layer(density=0.3), torch.randn(6, 20)), 1),
        (lambda: convert(layer(outputs=13), torch.randn(6, 20)), 1),
        (lambda: convert(layer(), torch.randn(6, 20), backend="reference"), 1),
        (lambda: convert(layer(), torch.randn(6, 20), format="csr"), 0),
        (lambda: convert(layer(), torch.randn(6, 20), keep_dense="never"), 0),
    ],
    ids=["batch", "dims", "strides", "sparsity", "shape", "backend", "fewer_formats", "keep_dense"],
)
def test_what_a_time_depends_on(
    folder: Path, calls: Calls, no_fallback: None, other: Callable[[], nn.Module], timed: int
) -> None:
    assert twice(calls, small, other) == timed


@pytest.mark.parametrize(
    "option",
    [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"kernel_size": 2}, {}],
    ids=str,
)
def test_the_window_of_a_convolution(folder: Path, calls: Calls, option: dict[str, int]) -> None:
    def conv(**options: int) -> nn.Module:
        window: dict[str, Any] = {"kernel_size": 3, **options}
        return convert(prune_(nn.Conv2d(4, 8, **window)), torch.randn(1, 4, 9, 9))

    assert twice(calls, conv, lambda: conv(**option)) == bool(option)


def test_other_threads_and_builds_are_other_times(
    folder: Path, calls: Calls, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    with machine.threads(threads + 1):
        assert layers_timed(calls, small) == 1
    assert layers_timed(calls, small) == 0
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(tuning, "_build", lambda: "newer")
    assert layers_timed(calls, small) == 1
    assert len(list(folder.iterdir())) == 2, "a new build takes the place of the old one"


def test_equal_layers_of_a_model_are_timed_once(calls: Calls) -> None:
    square = prune_(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)))
    square[1].weight.data = square[0].weight.data.flip(0)
    assert layers_timed(calls, lambda: convert(square, torch.randn(6, 20))) == 1
    assert not convert(square, torch.randn(6, 20)).report.notes


@pytest.mark.parametrize("value", ["0", ""])
def test_no_file(monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CACHE", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() is None
    assert twice(calls, small, small) == 1
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARSEPRUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_file().parent == tmp_path / ".cache" / "sparseprune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file().parent == tmp_path / "xdg" / "sparseprune"
    monkeypatch.setenv("SPARSEPRUNE_CACHE", "~/here")
    assert cache_file().parent == tmp_path / "here"
    assert str(cache_file()) in str(sparseprune.info()).replace("\n", "")


def valid(layers: Any) -> str:
    return json.dumps({"machine": tuning._machine(), "layers": layers})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\0\xff",
        "[]",
        "[" * 100_000,
        json.dumps({"machine": {"cpu": "another"}, "layers": {}}),
        valid([]),
        valid({"Linear": 3}),
        '{"machine": 1}',
        valid({"x": "y"}) + " " * tuning.MAX_BYTES,
    ],
    ids=range(10),
)
def test_a_file_that_is_not_ours_is_an_empty_one(folder: Path, calls: Calls, text: str) -> None:
    small()
    cache_file().write_text(text, encoding="latin-1")
    assert layers_timed(calls, small) == 1
    assert layers_timed(calls, small) == 0, "the file was replaced by a good one"


@pytest.mark.parametrize("bad", ["1.0", True, None, math.nan, math.inf, -1.0, 0.0, [1.0]], ids=str)
def test_implausible_times_are_measured_again(folder: Path, calls: Calls, bad: Any) -> None:
    small()
    content = json.loads(cache_file().read_text())
    (entry,) = content["layers"].values()
    entry["dense"] = bad
    cache_file().write_text(json.dumps(content))
    assert layers_timed(calls, small) == 1


def test_files_that_cannot_be_read_or_written(
    folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(tmp_path / "file" / "folder"))
    assert twice(calls, small, small) == 1
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(folder))
    cache_file().mkdir(parents=True)
    assert twice(calls, small, small) == 1
    if hasattr(os, "mkfifo"):
        cache_file().rmdir()
        os.mkfifo(cache_file())
        assert layers_timed(calls, small) == 1, "nobody waits for the other end"


def test_a_read_only_folder(folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(tuning, "write_atomically", refuse)
    assert twice(calls, small, small) == 1
    assert not list(folder.iterdir())


def test_two_writers_merge(tmp_path: Path) -> None:
    path = tmp_path / "new" / "times.json"
    mine, other = Times(path), Times(path)
    mine.keep("a", {"dense": 1.0})
    mine.keep("b", {"dense": 2.0})
    other.keep("b", {"dense": 3.0, "csr/rows": 0.5})
    other.keep("c", {"dense": 4.0})
    mine.save()
    other.save()
    both = Times(path)
    assert [both.find(key, ["dense"]) for key in "abc"] == [{"dense": t} for t in (1.0, 3.0, 4.0)]
    assert both.find("b", ["csr/rows", "dense"]) == {"csr/rows": 0.5, "dense": 3.0}
    assert both.find("a", ["csr/rows", "dense"]) is None and both.find("d", ["dense"]) is None
    assert both.from_file("a") and not both.from_file("d")


def test_another_process_finds_them(folder: Path) -> None:
    """Real times, and a real second process."""
    code = (
        "import torch, sparseprune; torch.manual_seed(0); layer = torch.nn.Linear(20, 12)\n"
        "sparseprune.prune(layer, 0.8)\n"
        "print(sparseprune.convert(layer, torch.ones(6, 20)).report.notes)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(sparseprune.__file__ or ".").parents[1])}
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert "from the cache" not in printed[0]
    assert "times of 1 layers from the cache" in printed[1]


def test_files_stay_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    monkeypatch.setattr(tuning, "MAX_LAYERS", 3)
    for key in "abcda":
        times = Times(path)
        times.keep(key, {"dense": 1.0})
        times.save()
    assert list(json.loads(path.read_text())["layers"]) == ["c", "d", "a"], "the newest stay"
    monkeypatch.setattr(tuning, "MAX_LAYERS", 10_000)
    monkeypatch.setattr(tuning, "MAX_BYTES", 4000)
    times = Times(path)
    for i in range(1000):
        times.keep(str(i), {"dense": 1.0})
    times.save()
    assert path.stat().st_size <= 4000
    assert Times(path).find("999", ["dense"]) == {"dense": 1.0}
