"""Fixtures that every test may use."""

from __future__ import annotations

import os
import warnings

# Idle threads of a busy machine sleep instead of spinning; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test reads or writes the times of layers that a user of this machine has measured.
os.environ["SPARSEPRUNE_CACHE"] = "0"
os.environ.pop("SPARSEPRUNE_TUNE", None)

from collections.abc import Iterator

import pytest
import torch
from beforehand import begun
from fake_cusparselt import FakeCusparselt, as_on_cuda
from scripted_times import script_times

from sparseprune import backends

if backends.CPU.missing:  # said once; here, so that no test stumbles over it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backends.choose(torch.device("cpu"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins what selected tests will wait for (``BEFOREHAND`` of their modules)."""
    if session.config.option.collectonly:
        return
    for module in dict.fromkeys(getattr(item, "module", None) for item in session.items):
        for work, *args in getattr(module, "BEFOREHAND", ()):
            begun(work, *args)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of threads, restored after the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture
def no_fallback() -> None:
    """Skips where no kernels are compiled."""
    if backends.CPU.missing:
        pytest.skip(f"no compiled kernels: {backends.CPU.missing}")


@pytest.fixture
def cslt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCusparselt]:
    """The CPU has the backend "cusparselt", computed by the fake."""
    with as_on_cuda(monkeypatch) as fake:
        yield fake


@pytest.fixture
def quick_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of each candidate instead of hundreds; tests of decisions script their times."""
    script_times(monkeypatch, lambda name: 1.0)


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Every packed candidate takes half the time of dense."""
    return script_times(monkeypatch, lambda name: 1.0 if name == "dense" else 0.5)
