"""Step 3: a converted network is saved, loaded by a fresh process and compared."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparseprune
from sparseprune.convert import convert
from sparseprune.io import load, save
from sparseprune.report import Report

# float32 sums in another order differ by a few units in the last place of the largest logit.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class RoundTrip:
    """Largest differences of logits, relative to the largest dense logit, and file sizes."""

    title: str
    sparse_against_dense: float
    loaded_against_saved: float
    dense_bytes: int
    file_bytes: int
    packed: int  # layers that run from packed weights
    layers: int

    @property
    def agrees(self) -> bool:
        """Whether both differences are within float tolerance."""
        return max(self.sparse_against_dense, self.loaded_against_saved) <= TOLERANCE


def round_trip(title: str, model: nn.Module, x: Tensor, folder: Path) -> RoundTrip:
    """convert(keep_dense="never") -> save -> load elsewhere -> compare logits on x [N, ...]."""
    stem = title.lower().replace("-", "_")
    saved, inputs, outputs = (
        folder / f"{stem}{end}.safetensors" for end in ("", "_inputs", "_logits")
    )
    fast = convert(model, x, keep_dense="never")
    with torch.no_grad():
        dense, sparse = model.eval()(x), fast(x)
    rows = cast(Report, fast.report).rows
    save(fast, saved)
    save_file({"x": x.contiguous()}, inputs)
    in_fresh_process(saved, inputs, outputs)
    loaded = load_file(outputs)["logits"]
    inputs.unlink()
    outputs.unlink()
    scale = float(dense.abs().max())
    return RoundTrip(
        title,
        sparse_against_dense=float((sparse - dense).abs().max()) / scale,
        loaded_against_saved=float((loaded - sparse).abs().max()) / scale,
        dense_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        file_bytes=saved.stat().st_size,
        packed=sum(row.kernel != "dense" for row in rows),
        layers=len(rows),
    )


def in_fresh_process(saved: Path, inputs: Path, outputs: Path) -> None:
    """Runs `rebuild` in a new interpreter that shares nothing with this one but the files."""
    code = "import sys; from sparseprune.demo.roundtrip import rebuild; rebuild(*sys.argv[1:])"
    # The package may be run from its source folder without being installed.
    source = str(Path(sparseprune.__file__ or ".").resolve().parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), str(inputs), str(outputs)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"round trip: the fresh process failed to load {saved}:\n{done.stderr}")


def rebuild(saved: str, inputs: str, outputs: str) -> None:
    """Loads a saved network and writes its logits; the body of the fresh process."""
    with torch.no_grad():
        logits = load(saved)(load_file(inputs)["x"])
    save_file({"logits": logits.contiguous()}, outputs)
