"""Who computes: forcing an instruction set, living without compiled kernels, saying so once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from scripted_times import script_times
from torch import nn

from sparseprune import backends, convert, prune
from sparseprune.formats import Csr
from sparseprune.nn import SparseLinear
from sparseprune.program.program import Program

LEVELS = ["scalar", "avx2", "avx512"]
CPU = torch.device("cpu")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with these variables and without the test's own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SPARSEPRUNE_")}
    return subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", code],
        env={**inherited, "SPARSEPRUNE_CACHE": "0", **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


MULTIPLY = """
import torch
from sparseprune import backends
from sparseprune.formats import Csr
w = torch.eye(9)
x = torch.randn(3, 9)
for layout in ("rows", "groups"):
    for _ in range(2):
        assert torch.equal(Csr(layout).pack(w).linear(x, None), x)
print(backends.current_isa())
"""


def test_available_names_everything_that_can_be_forced() -> None:
    names = backends.available()
    assert names[0] == "reference"
    assert names[1:] == [f"cpu:{isa}" for isa in backends.cpu_levels()] or backends.CPU.missing
    for name in names:
        with backends.only(name):
            weight = Csr().pack(torch.eye(3))
            assert weight.namespace == (
                "sparseprune_reference" if name == "reference" else "sparseprune"
            )
            if name != "reference":
                assert backends.current_isa() == name.removeprefix("cpu:")


def test_only_nests_and_restores() -> None:
    before = backends.current_isa(), backends.choose(CPU)
    for outer in backends.available():
        for inner in backends.available():
            with backends.only(outer):
                during = backends.current_isa(), backends.choose(CPU)
                with backends.only(inner):
                    pass
                assert (backends.current_isa(), backends.choose(CPU)) == during
            with pytest.raises(KeyError), backends.only(outer), backends.only(inner):
                raise KeyError
            assert (backends.current_isa(), backends.choose(CPU)) == before


@pytest.mark.usefixtures("no_fallback")
def test_only_refuses_unknown_names_and_changes_nothing() -> None:
    before = backends.current_isa(), backends.choose(CPU)
    with pytest.raises(ValueError, match=r"only: name must be .*'gpu'"), backends.only("gpu"):
        pass
    with pytest.raises(ValueError, match="got 'sse9'"), backends.only("cpu:sse9"):
        pass
    assert (backends.current_isa(), backends.choose(CPU)) == before


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("isa", LEVELS)
def test_environment_forces_a_level(isa: str) -> None:
    done = python(MULTIPLY, SPARSEPRUNE_ISA=isa)
    if isa in backends.cpu_levels():
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, isa, "")
    else:
        assert done.returncode != 0
        assert f"SPARSEPRUNE_ISA: this CPU does not support {isa}" in done.stderr


@pytest.mark.usefixtures("no_fallback")
def test_unknown_level_in_the_environment() -> None:
    done = python(MULTIPLY, SPARSEPRUNE_ISA="sse9")
    assert done.returncode == 1, "an exception, not a crash"
    assert "SPARSEPRUNE_ISA: expected scalar, avx2 or avx512, got 'sse9'" in done.stderr
    assert python("import sparseprune", SPARSEPRUNE_ISA="sse9").returncode == 0


@pytest.mark.usefixtures("no_fallback")
def test_force_isa() -> None:
    with pytest.raises(ValueError, match="expected scalar, avx2 or avx512, got 'AVX2'"):
        backends.force_isa("AVX2")
    for isa in backends.cpu_levels():
        backends.force_isa(isa)
        assert backends.current_isa() == isa
    backends.force_isa("")
    assert backends.current_isa() == backends.native.current_isa()  # type: ignore[union-attr]


def test_without_native_code_the_reference_works_and_says_so_once() -> None:
    done = python(MULTIPLY, SPARSEPRUNE_NATIVE="0")
    assert (done.returncode, done.stdout.strip()) == (0, "reference"), done.stderr
    assert done.stderr.count("sparseprune runs its Python reference on cpu") == 1
    assert "switched off by SPARSEPRUNE_NATIVE=0" in done.stderr


def test_without_native_code_conversion_works() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
import torch, sparseprune as sp
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 4))
sp.prune(model, sparsity=0.8)
x = torch.randn(5, 20)
fast = sp.convert(model, x, keep_dense="never")
torch.testing.assert_close(fast(x), model.eval()(x), rtol=1e-4, atol=1e-5)
print(*fast.report.kernels)
try:
    sp.convert(model, x, backend="cpu")
except ValueError as error:
    print(error)
"""
    done = python(code, SPARSEPRUNE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    kernels, error = done.stdout.splitlines()
    assert "reference" in kernels
    assert error.endswith("switched off by SPARSEPRUNE_NATIVE=0")


def test_choose_says_why_not() -> None:
    with pytest.raises(ValueError, match=r"backend must be .* got 'refrence'; did you mean"):
        backends.choose(CPU, "refrence")
    with pytest.raises(ValueError, match=r"serves cpu, the layer is on meta|switched off|not comp"):
        backends.choose(torch.device("meta"), "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"this torch has no CUDA|no CUDA device"):
            backends.choose(CPU, "cuda")


def test_serves_is_what_choose_accepts() -> None:
    for name in ("auto", "cpu", "cuda", "reference", "unknown"):
        for device in (CPU, torch.device("meta")):
            try:
                backends.choose(device, name) if name != "auto" else None
                accepted = True
            except ValueError:
                accepted = False
            assert backends.serves(name, device) is accepted


def test_a_layer_remembers_the_wanted_backend() -> None:
    sparse = SparseLinear.from_dense(nn.Linear(8, 8))
    sparse.weight.use("reference")
    assert sparse.to("cpu").weight.namespace == "sparseprune_reference"
    assert sparse.weight.backend == "reference"
    sparse.weight.use("auto")
    assert sparse.weight.namespace == backends.choose(CPU).namespace


@pytest.mark.usefixtures("no_fallback")
def test_every_row_of_the_kernel_table_is_testable() -> None:
    rows = backends.native.kernels()  # type: ignore[union-attr]
    assert {r["dtype"] for r in rows} == {"float"}
    assert {r["stem"] for r in rows} >= {"csr", "panel"}
    for stem in {r["stem"] for r in rows}:
        levels = [r["isa"] for r in rows if r["stem"] == stem]
        assert levels == sorted(levels, key=LEVELS.index, reverse=True), "best first"
        assert levels[-1] == "scalar"
    supported = {r["isa"] for r in rows if r["supported"]}
    assert supported == set(LEVELS[: LEVELS.index(backends.native.detected_isa()) + 1])  # type: ignore[union-attr]


def test_a_program_runs_where_only_triton_is(
    monkeypatch: pytest.MonkeyPatch, no_fallback: None
) -> None:
    """There it is the reference's, for Triton has layers alone."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    prune(model, 0.8)
    x = torch.randn(2, 3, 9, 9)
    script_times(monkeypatch, lambda name: 0.1 if name == "programs" else 1.0)
    fast = convert(model, x)
    expected = fast(x)
    (program,) = (m for m in fast.modules() if isinstance(m, Program))
    here = replace(backends.TRITON, device="cpu", missing=None)
    monkeypatch.setattr(backends, "BACKENDS", (here, backends.REFERENCE))
    program.use()
    assert program.namespace == "sparseprune_triton" and not program.compiled
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
