"""The backend "wgmma": which layers it takes, and when convert() does. Here the reference computes
in its place; tests/native runs its kernel on the CPU, tests/gpu on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_times import script_times
from torch import nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Block
from sparseprune.formats.block import WGMMA_CAPABILITY
from sparseprune.ops import block

NAME = "block/64x64 wgmma"


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU has the backend, and the capability that it is for."""
    here = replace(backends.WGMMA, device="cpu", missing=None)
    listed = tuple(here if b.name == here.name else b for b in backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", listed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: WGMMA_CAPABILITY)
    library = torch.library.Library(here.namespace, "IMPL")
    library.impl("block_linear", block.linear_reference, "CPU")
    library.impl("block_conv2d", block.conv2d_reference, "CPU")
    yield
    library._destroy()


def layer(side: int = 64, dtype: torch.dtype = torch.float16) -> nn.Linear:
    linear = nn.Linear(256, 192)
    prune(linear, 0.5, pattern=f"block({side},{side})")
    return linear.to(dtype)


def network() -> nn.Module:
    """Two layers of large blocks, one of small ones."""
    made = nn.Sequential(layer(), nn.ReLU(), nn.Linear(192, 256).half(), layer(32)).eval()
    prune(made[2], 0.5, pattern="block(64,64)")
    return made


def kernels(model: Any) -> list[str]:
    return [row.kernel.removesuffix(" + activation") for row in model.report.rows]


@pytest.mark.parametrize(
    ("side", "dtype", "reason"),
    [
        (64, torch.float16, None),
        (64, torch.bfloat16, None),
        (64, torch.float32, "float16 and bfloat16, got float32"),
        (32, torch.float16, "squares of 64, got 32x32"),
    ],
)
def test_what_it_takes(hopper: None, side: int, dtype: torch.dtype, reason: str | None) -> None:
    dense, fmt = layer(side, dtype), Block(side, side)
    packed = fmt.pack(dense.weight.detach())
    refused = packed.lacking("wgmma")
    assert fmt.lacking("wgmma", dense) == refused
    assert (refused is None) == (reason is None) and (reason or "") in (refused or "")
    if reason is None:
        y = packed.use("wgmma").linear(torch.ones(3, 256, dtype=dtype), None)
        assert packed.namespace == "sparseprune_wgmma"
        torch.testing.assert_close(y, packed.use("auto").linear(y.new_ones(3, 256), None))
    else:
        with pytest.raises(ValueError, match=reason):
            packed.use("wgmma")


def test_other_devices_are_refused(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    packed = Block(64, 64).pack(layer().weight.detach())
    with pytest.raises(ValueError, match=r"compute capability 9\.0, cpu has 8\.6"):
        packed.use("wgmma")


@pytest.mark.parametrize("faster", [True, False])
def test_convert_takes_it_where_it_is_measured_to_be_faster(
    hopper: None, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    times = {"dense": 1.0, "layers": 0.5, "programs": 0.8, "block/64x64": 0.6, "block/32x32": 0.5}
    calls = script_times(monkeypatch, lambda n: {**times, NAME: 0.4 if faster else 0.7}.get(n, 0.9))
    model, x = network(), torch.randn(70, 256).half()
    fast: Any = convert(model, x)
    assert [NAME in timed for timed in calls[:3]] == [True, True, False]
    assert kernels(fast)[2].startswith("block/32x32")
    assert [k == NAME for k in kernels(fast)[:2]] == [faster, faster]
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)


def test_a_model_goes_on_where_the_backend_is_missing(
    hopper: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script_times(monkeypatch, lambda name: 1.0 if name == "dense" else 0.5)
    model, x = network(), torch.randn(70, 256).half()
    fast: Any = convert(model, x, backend="wgmma")
    assert kernels(fast)[:2] == [NAME] * 2 and "squares of 64" in fast.report.rows[2].reason
    save(fast, tmp_path / "model")
    monkeypatch.setattr(backends, "BACKENDS", tuple(
        replace(b, missing="not here") if b.name == "wgmma" else b for b in backends.BACKENDS
    ))  # fmt: skip
    again: Any = load(tmp_path / "model")
    assert again[0].weight.namespace != "sparseprune_wgmma"
    with torch.inference_mode():
        torch.testing.assert_close(again(x), fast(x), rtol=1e-2, atol=1e-2)
