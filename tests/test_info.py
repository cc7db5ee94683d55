"""info() names every way to compute and says why not; machine() reads what the system tells."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparseprune
from sparseprune import backends, machine
from sparseprune.formats import FORMATS
from sparseprune.info import Info, InfoRow, info

CPUINFO = """processor : 0
cpu family	: 26
model		: 2
model name : Some CPU @ 2.0GHz
physical id : 0
core id : 0

processor : 1
physical id : 0
core id : 0

processor : 2
physical id : 1
core id : 0
"""


def rows(backend: str) -> list[InfoRow]:
    return [row for row in info().rows if row.backend == backend]


def test_every_format_has_a_row_per_backend() -> None:
    for f in FORMATS:
        found = {row.backend for row in info().rows if row.format == f.name}
        assert found == {backend.name for backend in backends.BACKENDS}


def test_reference_is_always_there() -> None:
    assert rows("reference") and all(row.available for row in rows("reference"))


def test_cpu_rows_follow_the_kernel_table(no_fallback: None) -> None:
    assert backends.native is not None
    isas = {k["isa"]: k["supported"] for k in backends.native.kernels() if k["stem"] == "csr"}
    csr = [row for row in rows("cpu") if row.format.startswith("csr/")]
    assert {row.isa for row in csr} == set(isas)
    assert all(row.available == isas[row.isa] for row in csr)
    assert {row.isa for row in csr if row.note == "in use"} == {backends.current_isa()}


def test_unsupported_isa_and_missing_kernels(
    monkeypatch: pytest.MonkeyPatch, no_fallback: None
) -> None:
    class Native:
        @staticmethod
        def kernels() -> list[dict[str, object]]:
            return [{"stem": "csr", "dtype": "float", "isa": "sve", "supported": False}]

        @staticmethod
        def current_isa() -> str:
            raise RuntimeError("SPARSEPRUNE_ISA: no level 'x'")

    monkeypatch.setattr(backends, "native", Native)
    csr = next(row for row in rows("cpu") if row.format.startswith("csr/"))
    assert (csr.isa, csr.available, csr.reason) == ("sve", False, "this CPU has no sve")
    assert "no level 'x'" in str(info().machine["isa"])
    monkeypatch.setattr(Native, "kernels", list)
    assert rows("cpu")[0].reason.startswith("this build has no ")


def test_cuda_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(backends.CUDA, missing="this torch has no CUDA")
    monkeypatch.setattr(backends, "BACKENDS", (missing,))
    for row in rows("cuda"):
        assert not row.available
        assert row.reason == "this torch has no CUDA"
        assert row.note == "not yet run on a GPU"


def test_switched_off_in_a_fresh_process() -> None:
    code = "from sparseprune.info import info; print(info())"
    folder = Path(sparseprune.__file__ or ".").parents[1]
    env = {**os.environ, "SPARSEPRUNE_NATIVE": "0", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "switched off by SPARSEPRUNE_NATIVE=0" in done.stdout
    assert "isa: reference" in done.stdout


def test_table_and_dict() -> None:
    found = info()
    data = json.loads(json.dumps(found.to_dict()))
    assert len(data["rows"]) == len(found.rows)
    assert data["machine"]["torch"] == torch.__version__
    printed = str(Info([InfoRow("csr/rows", "cpu", "avx2", False, "why", "note")], {"gpu": None}))
    assert "why; note" in printed and "gpu: -" in printed


def test_machine_is_flat_and_complete() -> None:
    found = machine.machine()
    assert found["threads"] == torch.get_num_threads()
    assert found["sparseprune"] == sparseprune.__version__
    assert found["cpu"] and isinstance(found["cores"], int) and found["cores"] >= 1
    assert all(value is None or isinstance(value, (str, int, float)) for value in found.values())


def test_cpuinfo_and_meminfo_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.cpu_name() == "Some CPU @ 2.0GHz (family 26 model 2)"
    assert machine.core_count() == 2  # two threads share the first core
    assert machine.ram_gb() == 16.4


def test_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert machine.cpu_name()
    assert machine.core_count() == (os.cpu_count() or 1)
    ram = machine.ram_gb()
    assert ram is None or ram > 0


def test_threads_are_restored(threads: int) -> None:
    with pytest.raises(KeyError), machine.threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == threads
    with machine.threads(None):
        assert torch.get_num_threads() == threads
