"""The Triton kernels without a GPU: interpreted on the CPU, and compiled for sm_90.

bfloat16 is compiled only: the interpreter multiplies it wrongly.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from beforehand import begun

from sparseprune import backends

pytest.importorskip("triton")
TESTS = Path(__file__).parent

SIZES = {
    "block": {"R": 32, "C": 32, "PADDED_R": 32, "PADDED_C": 32, "TOKENS": 64, "SPLIT": 1},
    "nm": {"N": 2, "M": 4, "BITS": 2, "TOKENS": 64, "ROWS": 32, "COLUMNS": 32},
    "bitmask": {"UNIT": 64, "TOKENS": 16, "ROWS": 32, "COLUMNS": 64},
    "csr": {"TOKENS": 16, "NONZEROS": 32},
}
LEAST = {"block": (60, 15, 1), "nm": (60, 15, 1), "bitmask": (60, 1, 1), "csr": (90, 12, 1)}
"""How many checks of each kind there are."""
KERNELS = [
    (s, k) for s in SIZES for k in ("_linear", "_conv2d") if (s, k) != ("bitmask", "_conv2d")
]
FLAGS = {"TAPS_FIRST": True, "HAS_BIAS": True}

every_format = pytest.mark.parametrize("stem", SIZES)


def interpreted(stem: str) -> subprocess.CompletedProcess[str]:
    """What the checks of tests/triton_<stem>.py say."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(TESTS / f"triton_{stem}.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )


BEFOREHAND = [(interpreted, stem) for stem in SIZES]


@every_format
def test_interpreted_kernels_match_dense(stem: str) -> None:
    done = begun(interpreted, stem).result()
    assert done.returncode == 0, done.stderr[-3000:]
    counts = tuple(map(int, done.stdout.split()))
    assert all(count >= least for count, least in zip(counts, LEAST[stem], strict=True)), counts


@pytest.mark.parametrize("element", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("stem", "kernel"), KERNELS)
def test_compiles_for_hopper(stem: str, kernel: str, element: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"sparseprune.triton.{stem}"), kernel).fn

    def kind(name: str) -> str:
        if name.isupper():
            return "constexpr"
        return {
            **dict.fromkeys(("x", "values", "bias", "y"), f"*{element}"),
            **dict.fromkeys(("columns", "starts"), "*i32"),
            **({"columns": "*u16"} if stem == "csr" else {}),
            "places": "*u8",
            "masks": "*i64",
            **dict.fromkeys(("low", "high"), "fp32"),
        }.get(name, "i32")

    signature = {name: kind(name) for name in function.arg_names}
    constants: dict[str, Any] = {
        n: v for n, v in {**SIZES[stem], **FLAGS}.items() if n in signature
    }
    made = triton.compile(
        ASTSource(function, signature, constants), target=GPUTarget("cuda", 90, 32)
    )
    ptx = made.asm["ptx"]
    assert made.asm["cubin"] and "tf32" not in ptx
    assert ("wgmma" in ptx or "mma.sync" in ptx) == (element != "fp32" and stem != "csr")


@every_format
def test_it_is_asked_for_by_name_on_cuda_only(stem: str) -> None:
    with pytest.raises(ValueError, match="backend must be one that serves cpu, got 'triton'"):
        backends.choose(torch.device("cpu"), "triton", stem)
    assert backends.has_kernel(f"sparseprune_triton::{stem}_linear", "cpu") is False
