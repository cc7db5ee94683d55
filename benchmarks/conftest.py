"""pytest benchmarks --benchmark-only        (without that option nothing here is collected)

Only the best instruction set of this CPU is timed; --every-isa times all that it has. Each
benchmark checks its output against dense first. Nonzeros, GFLOP/s and the machine are in
extra_info: --benchmark-json FILE keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseprune import backends
from sparseprune.machine import machine

TOLERANCE = 1e-4
"""Largest difference from dense, relative to the largest output, that is timed."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect bench_*.py, but only when benchmarks are asked for."""
    wanted = parent.config.getoption("benchmark_only", default=False)
    named = parent.session.isinitpath(file_path)  # pytest itself collects a file given by name
    if wanted and not named and file_path.match("bench_*.py"):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    """--every-isa"""
    text = "time packed layers on every instruction set of this CPU, not only on the best"
    parser.addoption("--every-isa", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out all backends but the best, unless --every-isa is given."""
    if config.getoption("every_isa"):
        return
    others = set(backends.available()) - {f"cpu:{backends.current_isa()}"}
    left_out = [i for i in items if isinstance(i, pytest.Function) and _backend(i) in others]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _backend(item: pytest.Function) -> object:
    return item.callspec.params.get("backend") if hasattr(item, "callspec") else None


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """compare(run, expected, macs, nonzero_macs, **facts): check, time, and note the speed."""

    @torch.inference_mode()
    def compare(
        run: Callable[[], torch.Tensor],
        expected: torch.Tensor,
        macs: int,
        nonzero_macs: int,
        **facts: Any,
    ) -> None:
        error = float((run() - expected).abs().max() / expected.abs().max())
        assert error <= TOLERANCE, f"output differs from dense by {error:.1e}: not timed"
        benchmark(run)
        benchmark.extra_info.update(facts, machine=machine())
        if benchmark.stats is not None:  # None with --benchmark-disable
            nanoseconds = benchmark.stats.stats.median * 1e9
            benchmark.extra_info["dense_equivalent_gflops"] = 2 * macs / nanoseconds
            benchmark.extra_info["real_gflops"] = 2 * nonzero_macs / nanoseconds

    return compare
