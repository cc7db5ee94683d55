"""Layers by cuSPARSELt: when convert() takes it, and what becomes of them when they are copied,
moved, stored. The library is a fake; tests/gpu has the real one."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cusparselt import FakeCusparselt, as_on_cuda, assert_as_dense, dense_layer, packed_layer
from scripted_times import script_times
from torch import nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Nm, NmWeight
from sparseprune.nn import SparseLinear

# --- convert

NAME = "nm/2:4 cusparselt"


def network(dtype: torch.dtype = torch.float16) -> nn.Module:
    """Two layers that it serves, with ReLU, and a head that it does not."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))
    prune(model.to(dtype), 0.5, pattern="2:4", scope="local")
    return model.eval()


def kernels(model: Any) -> list[str]:
    return [row.kernel.removesuffix(" + activation") for row in model.report.rows]


@pytest.mark.parametrize("faster", [True, False])
def test_convert_takes_it_where_it_is_measured_to_be_faster(
    cslt: FakeCusparselt, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    times = {"dense": 1.0, "layers": 0.5, "programs": 0.8, "nm/2:4": 0.6}
    calls = script_times(monkeypatch, lambda n: {**times, NAME: 0.4 if faster else 0.7}.get(n, 0.9))
    model, x = network(), torch.randn(11, 64).half()
    fast: Any = convert(model, x)
    assert [NAME in timed for timed in calls[:3]] == [True, True, False]
    assert [k == NAME for k in kernels(fast)] == [faster, faster, False]
    assert fast.report.rows[0].sparse_ms == (0.4 if faster else 0.6)
    assert_as_dense(fast, model, x)
    weight = fast[0].weight
    assert fast.report.rows[0].packed_bytes == weight.nbytes
    assert fast[0].clamp == (0.0, None)
    if faster:
        assert weight.nbytes == weight.compressed.nbytes + weight.places.nbytes
        assert "cusparselt" in str(fast.report)


def test_times_of_both_are_kept(
    cslt: FakeCusparselt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CACHE", str(tmp_path))
    calls = script_times(monkeypatch, lambda name: {"dense": 1.0, NAME: 0.3}.get(name, 0.5))
    model, x = network(), torch.randn(11, 64).half()
    first: Any = convert(model, x)
    timed = len(calls)
    again: Any = convert(model, x)
    assert kernels(again) == kernels(first) and kernels(first)[:2] == [NAME] * 2
    assert len(calls) == timed + 1, "the whole model alone"
    assert "times of 3 layers from the cache" in again.report.notes[0]


def test_convert_can_be_told_to_take_it(
    cslt: FakeCusparselt, sparse_wins: list[dict[str, float]]
) -> None:
    model, x = network(), torch.randn(11, 64).half()
    fast: Any = convert(model, x, backend="cusparselt")
    assert kernels(fast) == [NAME, NAME, "dense"]
    assert "multiples of 16, got 10 x 32" in fast.report.rows[2].reason
    assert fast[0].weight.backend == "cusparselt"
    assert_as_dense(fast, model, x)


UNSERVED: dict[str, tuple[dict[str, Any], str, str]] = {
    "float32": ({"dtype": torch.float32}, "2:4", "multiplies float16 and bfloat16, got float32"),
    "sides": ({"rows": 20}, "2:4", "sides are multiples of 16, got 20 x 48"),
    "not 2:4": ({}, "unstructured", "multiplies 2:4, got 1"),
}


@pytest.mark.parametrize("name", UNSERVED)
@pytest.mark.parametrize("fmt", ["auto", "nm"])
def test_convert_says_why_it_cannot_take_it(cslt: FakeCusparselt, name: str, fmt: str) -> None:
    arguments, pattern, reason = UNSERVED[name]
    model = nn.Linear(48, arguments.get("rows", 32)).to(arguments.get("dtype", torch.float16))
    prune(model, 0.5, pattern=pattern)
    x = torch.randn(4, 48).to(model.weight.dtype)
    with pytest.raises(ValueError, match=f"backend must .* got 'cusparselt'; .*{reason}"):
        convert(model, x, backend="cusparselt", format=fmt)


def test_a_device_that_the_library_does_not_serve_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, sparse_wins: list[dict[str, float]]
) -> None:
    model, x = network(), torch.randn(11, 64).half()
    with as_on_cuda(monkeypatch, FakeCusparselt(missing="architecture mismatch")):
        assert not any("cusparselt" in k for k in kernels(convert(model, x)))
        with pytest.raises(ValueError, match=r"got 'cusparselt'; .*architecture mismatch"):
            convert(model, x, backend="cusparselt")


# --- copies, moves, files


def test_its_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_layer(rows=64, cols=128)
    for values_first in (True, False):
        with as_on_cuda(monkeypatch, FakeCusparselt(values_first)):
            weight = Nm(2, 4).pack(dense.weight.detach()).use("cusparselt")
            assert weight.compressed is not None
            own, more = weight.values.nbytes + weight.places.nbytes, weight.compressed.nbytes
            assert weight.nbytes == own + more - values_first * weight.values.nbytes
            assert torch.equal(weight.unpack(), dense.weight)
            assert weight.use("auto").compressed is None and weight.nbytes == own


COPIES: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: torch.load(_saved(layer), weights_only=False),
    "twin": lambda layer: SparseLinear(layer.weight.twin(), layer.bias),
    "same place": lambda layer: copy.deepcopy(layer).to("cpu"),
    "clones": lambda layer: copy.deepcopy(layer)._apply(torch.clone),
}


def _saved(layer: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("values_first", [True, False])
def test_copies_compute_by_it_too(
    monkeypatch: pytest.MonkeyPatch, how: str, values_first: bool
) -> None:
    with as_on_cuda(monkeypatch, FakeCusparselt(values_first)) as fake:
        sparse, dense = packed_layer()
        other = COPIES[how](sparse)
        assert other.weight.backend == "cusparselt" and other.weight.compressed is not None
        before = len(fake.products)
        x = torch.randn(3, 48).half()
        assert_as_dense(other, dense, x)
        assert len(fake.products) == before + 1
        assert_as_dense(sparse, dense, x)


def test_a_pickle_does_without_the_library(cslt: FakeCusparselt) -> None:
    sparse, dense = packed_layer()
    stored = pickle.dumps(sparse)
    listed = tuple(b for b in backends.BACKENDS if b.name != "cusparselt")
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(
            backends, "BACKENDS", (*listed, replace(backends.CUSPARSELT, missing="no"))
        )
        with pytest.warns(UserWarning, match="the backend 'cusparselt' no; 'auto' chooses anew"):
            other = pickle.loads(stored)
    assert other.weight.backend == "auto" and other.weight.compressed is None
    assert_as_dense(other, dense, torch.randn(3, 48).half())


def test_a_change_of_dtype_is_followed(cslt: FakeCusparselt) -> None:
    sparse, dense = packed_layer()
    assert_as_dense(sparse.bfloat16(), dense.bfloat16(), torch.randn(3, 48).bfloat16())
    assert sparse.weight.backend == "cusparselt"
    with pytest.warns(UserWarning, match="'cusparselt' multiplies float16 and bfloat16, got float"):
        sparse.float()
    assert sparse.weight.backend == "auto" and sparse.weight.compressed is None
    x = torch.randn(3, 48)
    torch.testing.assert_close(sparse(x), dense.float()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:sparseprune runs its Python reference")
def test_a_move_elsewhere_leaves_it(cslt: FakeCusparselt) -> None:
    sparse, _ = packed_layer()
    sparse.to("meta")
    assert sparse.weight.backend == "auto" and sparse.weight.compressed is None


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_is_that_of_the_format(cslt: FakeCusparselt, assign: bool) -> None:
    (sparse, _), (other, dense) = packed_layer(), packed_layer()
    assert set(sparse.state_dict()) == {"bias", "weight.values", "weight.places"}
    sparse.load_state_dict(other.state_dict(), assign=assign)
    assert_as_dense(sparse, dense, torch.randn(3, 48).half())
    plain = SparseLinear.from_dense(dense_layer(), Nm(2, 4))
    plain.load_state_dict(sparse.state_dict())
    assert torch.equal(plain.weight.unpack(), dense.weight)


def test_files_hold_the_format(
    cslt: FakeCusparselt, sparse_wins: list[dict[str, float]], tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    model, x = network(), torch.randn(11, 64).half()
    fast: Any = convert(model, x, backend="cusparselt")
    save(fast, tmp_path / "model")
    loaded: Any = load(tmp_path / "model")
    weight = loaded[0].weight
    assert isinstance(weight, NmWeight)
    assert weight.backend == "auto" and weight.compressed is None
    assert_as_dense(loaded, model, x)
    weight.use("cusparselt")
    assert_as_dense(loaded, model, x)
