"""Kernels run where the packages that only show and store things are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparseprune
from sparseprune.printed import printed

WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # an import of it fails
import torch, sparseprune as sp
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU())
masks = sp.prune(model, sparsity=0.8)
x = torch.randn(5, 20)
fast = sp.convert(model, x, keep_dense="never")
torch.testing.assert_close(fast(x), model.eval()(x), rtol=1e-4, atol=1e-5)
print(fast.report.rows[0].name, sp.profile(model, x).macs, len(sp.info().rows) > 3)
try:
    print({action})
except ImportError as error:
    print("needs", error.name)
"""


@pytest.mark.parametrize(
    ("missing", "action"),
    [(["rich"], "str(fast.report)"), (["safetensors"], "masks.save('nowhere')")],
)
def test_without_what_only_shows_or_stores(missing: list[str], action: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing, action=action)],
        env={**os.environ, "PYTHONPATH": str(Path(sparseprune.__file__ or ".").parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, needs = done.stdout.splitlines()
    assert found == "0 3000 True"
    assert needs.startswith(f"needs {missing[0]}")


def test_printed_is_as_wide_as_asked() -> None:
    assert printed("a " * 20, 10).splitlines()[0].rstrip() == "a a a a a"
