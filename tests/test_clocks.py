"""Timing on a device without one: the procedure with a scripted GPU, and convert's use of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from convert_models import prune_
from torch import nn

from sparseprune import autotune, backends, choose, clocks, convert, forms, offers, tuning
from sparseprune.autotune import BURST, compare_ms, device_of
from sparseprune.clocks import EventClock, HostClock
from sparseprune.formats import Block, Csr, Nm, PackedWeight

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@dataclass
class FakeGpu:
    """A device that does one thing after the other in its own time, and keeps a log."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)
    cold: bool = False

    def empty_l2(self) -> None:
        self.log.append("empty")
        self.now += 50.0
        self.cold = True

    def mark(self) -> float:
        self.log.append("mark")
        return self.now

    def wait(self) -> None:
        self.log.append("wait")

    def ms(self, start: float, end: float) -> float:
        return end - start

    def work(self, name: str, cold: float, warm: float) -> Callable[[], None]:
        """A call that takes so long, and leaves the cache warm."""

        def call() -> None:
            self.log.append(name)
            self.now += cold if self.cold else warm
            self.cold = False

        return call


def test_event_times_are_of_calls_with_a_cold_cache_alone() -> None:
    gpu = FakeGpu()
    samples = EventClock(gpu).samples_ms(gpu.work("call", 3.0, 1.0), 4)
    assert samples == [3.0] * 4, "neither emptying nor a warm call is in them"
    assert gpu.log == ["empty", "mark", "call", "mark"] * 4 + ["wait"], "the host waits once"


def test_host_times_are_from_idle_to_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: gpu.log.append("time") or 0.0)
    HostClock(gpu).samples_ms(gpu.work("call", 3.0, 1.0), 2)
    assert gpu.log == ["empty", "wait", "time", "call", "wait", "time"] * 2
    gpu.log.clear()
    HostClock().samples_ms(gpu.work("call", 3.0, 1.0), 1)
    assert gpu.log == ["time", "call", "time"], "nothing to wait for on the CPU"


def test_candidates_take_turns_and_medians_decide() -> None:
    gpu = FakeGpu()
    slow = iter([9.0] + [2.0] * 1000)  # an outlier first

    def dense() -> None:
        gpu.log.append("dense")
        gpu.now += next(slow)

    calls = {"dense": dense, "packed": gpu.work("packed", 1.0, 0.1)}
    times = compare_ms(calls, seconds=0, rounds=3, clock=EventClock(gpu))
    assert times == {"dense": 2.0, "packed": 1.0}
    turns = [name for name in gpu.log if name in calls]
    warm_up, turns = turns[:2], turns[2:]
    assert warm_up == ["dense", "packed"]
    order = [turns[i] for i in range(0, len(turns), 1 + BURST)]
    assert order == ["dense", "packed", "packed", "dense", "dense", "packed"], "nobody always first"
    assert gpu.log.count("empty") == 2 * 3 * BURST, "the first call of a turn is not timed"


def test_the_host_clock_is_what_compare_takes_without_one() -> None:
    assert 0 < compare_ms({"sum": torch.ones(8).sum}, seconds=0)["sum"] < 1e3
    assert statistics.median(HostClock().samples_ms(lambda: None, 9)) < 1


def test_clocks_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(clocks, "CudaGpu", lambda device: made.append(device) or FakeGpu())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    cpu = torch.device("cpu")
    assert clocks.of_layers(cpu) == clocks.of_models(cpu) == HostClock()
    layers = clocks.of_layers(torch.device("cuda"))
    models = clocks.of_models(torch.device("cuda", 2))
    assert isinstance(layers, EventClock) and isinstance(models, HostClock)
    assert made == [torch.device("cuda", 2)] * 2 and layers.gpu is not models.gpu


def test_a_cold_cache_needs_a_buffer_larger_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Properties:
        L2_cache_size: int

    made: list[int] = []
    monkeypatch.setattr(torch, "zeros", lambda n, **_: made.append(4 * n))
    for l2 in (60 << 20, 4 << 20):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, l2=l2: Properties(l2))
        clocks.CudaGpu(torch.device("cuda", 0))
    assert made == [240 << 20, 64 << 20]


# --- convert


def test_convert_times_layers_by_the_device_and_models_as_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which clock times what, with a scripted device in place of CUDA."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(clocks, "of_layers", lambda d: asked.append(("layers", d.type)) or "L")
    monkeypatch.setattr(clocks, "of_models", lambda d: asked.append(("models", d.type)) or "M")

    def compare(functions: dict[str, Any], clock: Any = None, **_: Any) -> dict[str, float]:
        assert clock == ("M" if {"layers", "programs"} & set(functions) else "L")
        return {name: 1.0 if name == "dense" else 0.5 for name in functions}

    for module in (choose, forms):
        monkeypatch.setattr(module, "compare_ms", compare)
    convert(prune_(nn.Sequential(nn.Linear(20, 12))), torch.randn(6, 20), backend="reference")
    assert sorted(set(asked)) == [("layers", "cpu"), ("models", "cpu")]


@pytest.mark.usefixtures("sparse_wins")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_layers_of_16_bits_reach_the_formats_that_hold_them(dtype: torch.dtype, kind: str) -> None:
    layer = nn.Linear(96, 64) if kind == "linear" else nn.Conv2d(32, 64, 1)
    x = torch.randn(8, 96) if kind == "linear" else torch.randn(2, 32, 6, 5)
    weight = layer.weight.data.flatten(1)
    weight[:, 32:] = 0
    weight[32:] = 0
    model, x = nn.Sequential(layer).to(dtype).eval(), x.to(dtype)
    fast = convert(model, x)
    row = fast.report.rows[0]
    assert row.kernel.startswith("block/"), row.reason
    with torch.no_grad():
        got, expected = fast(x), model(x)
    assert got.dtype == dtype
    assert float((got - expected).abs().max()) <= 1e-2 * float(expected.abs().max())


def test_the_key_of_a_time_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseprune import machine

    facts = {"name": "NVIDIA H200", "driver": 13000, "cuda": "13.0", "conv": "tf32"}

    class Conv:
        @property
        def fp32_precision(self) -> str:
            return str(facts["conv"])

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: facts["name"])
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: facts["driver"], raising=False)
    monkeypatch.setattr(torch.version, "cuda", facts["cuda"])
    monkeypatch.setattr(torch.backends.cudnn, "conv", Conv())
    words = " ".join(machine.cuda_words(torch.device("cuda", 0)))
    assert words == "on NVIDIA H200 driver 13000 cuda 13.0 conv tf32"
    for name, other in (("name", "L4"), ("driver", 12080), ("conv", "ieee")):
        monkeypatch.setitem(facts, name, other)
        assert " ".join(machine.cuda_words(torch.device("cuda", 0))) != words
    layer = nn.Linear(4, 4)
    keys = {tuning.describe(layer, "Linear", 0.5, torch.ones(1, 4, dtype=d))
            for d in (torch.float32, torch.bfloat16)}  # fmt: skip
    assert len(keys) == 2, "a time is of one dtype"


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Backends as on a machine with a CUDA device; nothing may run there."""
    here = tuple(replace(b, missing=None) if b.device == "cuda" else b for b in backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", here)
    monkeypatch.setattr(
        backends, "has_kernel", lambda op, device: "csr" not in op or "_t" not in op
    )
    return torch.device("cuda")


def test_cuda_before_triton_before_the_reference(with_cuda: torch.device) -> None:
    def chosen(fmt: Any, wanted: str = "auto") -> str:
        return backends.choose(with_cuda, wanted, fmt.stem, fmt.lacking).name

    assert chosen(Csr()) == "cuda"
    assert [chosen(Block(side, side)) for side in (16, 32, 64)] == ["cuda"] * 3
    assert chosen(Block(4, 8)) == chosen(Block(32, 16)) == chosen(Block(128, 128)) == "triton"
    assert chosen(Block(16, 16), "triton") == "triton"
    assert chosen(Block(4, 8), "reference") == "reference"
    with pytest.raises(ValueError, match="got 'cuda'; multiplies squares of 16, 32, 64, got 4x8"):
        chosen(Block(4, 8), "cuda")
    assert (chosen(Nm(2, 4)), chosen(Nm(1, 4)), chosen(Nm(4, 8))) == ("cuda", "triton", "triton")
    eye = torch.eye(8)
    assert Nm().settled(eye) == Nm(2, 4) and Nm().pack(eye).lacking("cuda") is None
    quarter = Nm(1, 4).pack(eye)
    assert quarter.lacking("cuda") == Nm(1, 4).lacking("cuda") == "multiplies 2:4, got 1:4"
    assert quarter.lacking("triton") is None
    packed = Block(4, 8).pack(torch.ones(8, 8))
    assert packed.lacking("cuda") == Block(4, 8).lacking("cuda") is not None
    assert packed.lacking("triton") is None and Block(64, 64).lacking("cuda") is None


def test_without_cuda_kernels_for_a_block_and_triton_it_says_why(
    with_cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_triton = tuple(
        replace(b, missing="not installed") if b.name == "triton" else b for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", no_triton)
    monkeypatch.setattr(backends, "_told", False)
    with pytest.warns(UserWarning, match="got 4x8; triton: not installed"):
        assert backends.choose(with_cuda, "auto", "block", Block(4, 8).lacking).name == "reference"


def test_what_only_the_reference_would_run_on_cuda_is_not_timed(
    with_cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparseprune.nn import SparseConv1d, SparseLinear

    monkeypatch.setattr(backends, "has_kernel", lambda op, device: not op.endswith("::run"))

    def would(kind: type[Any], fmt: Any, device: torch.device, wanted: str) -> str:
        return offers.by_backends(kind, fmt, device, wanted)[0].engine

    assert would(SparseLinear, Csr("rows"), with_cuda, "auto") == "cuda"
    assert would(SparseConv1d, Csr("rows"), with_cuda, "auto") == "reference"
    assert would(SparseLinear, Block(4, 8), with_cuda, "auto") == "triton"
    assert would(SparseLinear, Block(4, 8), with_cuda, "reference") == "reference"
    assert would(SparseConv1d, Csr("rows"), torch.device("cpu"), "reference") == "reference"


def test_a_grid_is_settled_before_it_is_timed() -> None:
    weight = torch.ones(64, 64)
    weight[:32, :32] = 0
    assert Block().settled(weight).name == "block/32x32"
    assert Block().settled(weight).pack(weight).values.shape == (3, 32, 32)
    assert Block(taps=4).settled(weight) == Block(32, 32) or Block(taps=4).settled(weight).taps == 4
    assert Csr().settled(weight) == Csr()


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_a_move_to_another_device_is_said(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    if backends.CPU.missing and wanted == "cpu":
        pytest.skip("no compiled kernels")
    weight = Csr().pack(torch.eye(4)).use(wanted)
    places = iter([torch.device("cpu"), *[torch.device("cuda")] * 9])
    monkeypatch.setattr(PackedWeight, "device", property(lambda self: next(places)))
    monkeypatch.setattr(backends, "_told", True)
    with pytest.warns(UserWarning, match="moved from cpu to cuda, but their formats were") as said:
        weight.to(torch.float32)
    assert ("backend 'cpu' does not serve cuda" in str(said[0].message)) == (wanted == "cpu")
    assert weight.backend == "auto"


def test_device_of_a_model() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False)) == device_of(nn.ReLU()) == torch.device("cpu")
    assert "compare_ms" in dir(sys.modules[autotune.__name__])


# --- on a GPU


@cuda
def test_events_see_the_device_and_not_the_host() -> None:
    import time

    clock = clocks.of_layers(torch.device("cuda"))
    x = torch.randn(2048, 2048, device="cuda")

    def slow_host() -> None:
        time.sleep(1e-5)
        torch.mm(x, x)

    times = compare_ms({"mm": lambda: torch.mm(x, x), "slow": slow_host}, seconds=0.2, clock=clock)
    assert 0 < times["mm"] < 10 and times["slow"] < 1.5 * times["mm"]
