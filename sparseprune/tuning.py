"""Times kept on disk: what was measured once on this machine is not measured again.

Of layers (choose.py) and of steps of programs (program/tune.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.files import write_atomically
from sparseprune.machine import cpu_name, cuda_words, isa_in_use
from sparseprune.version import __version__

MAX_LAYERS = 4096
"""Layers that a file keeps; the oldest go first."""
MAX_BYTES = 4 << 20
"""A larger file is not ours."""
STEP = 0.02
"""Sparsities are told apart in steps of this size."""

Milliseconds = dict[str, float]


def measures() -> bool:
    """Whether convert() may time anything: not with SPARSEPRUNE_TUNE=0."""
    return os.environ.get("SPARSEPRUNE_TUNE") != "0"


def cache_file() -> Path | None:
    """Where times measured on this machine, as it is set up now, are kept; None where they are not.

    In the folder SPARSEPRUNE_CACHE ("0" or empty: no file), else sparseprune in XDG_CACHE_HOME or
    ~/.cache. One file for every CPU model, instruction set, number of threads and versions.
    """
    folder = _folder()
    if folder is None:
        return None
    text = json.dumps({**_machine(), "build": ""}, sort_keys=True)  # a new build takes the place
    return folder / f"times-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _folder() -> Path | None:
    named = os.environ.get("SPARSEPRUNE_CACHE")
    try:
        if named is not None:
            return Path(named).expanduser() if named not in ("", "0") else None
        base = os.environ.get("XDG_CACHE_HOME", "")  # only absolute, says its specification
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sparseprune"
    except RuntimeError:  # no home
        return None


def _machine() -> dict[str, str | int]:
    """What a time depends on beside its layer."""
    return {
        "cpu": cpu_name(),
        "isa": isa_in_use(),
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "sparseprune": __version__,
        "torch": torch.__version__,
        "build": _build(),
    }


def _build() -> str:
    """Which compiled kernels these are: while they are worked on, their version stays."""
    words = []
    for path in sorted(backends.FOLDER.glob("sparseprune_*.so")):
        with contextlib.suppress(OSError):
            status = path.stat()
            words.append(f"{path.stem} {status.st_size} {status.st_mtime_ns}")
    return ", ".join(words)


def describe(layer: nn.Module, kind: str, sparsity: float, x: Tensor) -> str:
    """The key of a layer and one of its inputs: all that its time depends on but the machine.

    Where the nonzeros lie makes no difference to any kernel here that a median would show.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    words = [kind, _by(weight.shape)]
    if isinstance(layer, nn.Conv2d):
        for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
            value = getattr(layer, name)
            words += [name, _by(value) if isinstance(value, tuple) else str(value)]
    words += ["input", _by(x.shape), str(x.dtype).removeprefix("torch.")]
    if not x.is_contiguous():
        words += ["strides", _by(x.stride())]
    words += ["sparsity", coarse(sparsity)]
    if weight.device.type == "cuda":
        words += cuda_words(weight.device)
    return " ".join(words)


def coarse(sparsity: float) -> str:
    """Sparsities that are not told apart have the same."""
    return f"{round(sparsity / STEP) * STEP:.2f}"


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


class Times:
    """Milliseconds of candidates by layer, from a file and from what was measured since.

    No file, or one that cannot be read, is an empty one; a file that cannot be written stays as
    it was.

    Args:
        path: of the file; None keeps times in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._read = {} if path is None else _read(path)
        self._new: dict[str, Milliseconds] = {}

    def find(self, key: str, names: Iterable[str]) -> Milliseconds | None:
        """The times of these candidates, measured in turn; None if one of them is missing."""
        known = self._new.get(key) or self._read.get(key, {})
        found = {name: known.get(name) for name in names}
        return None if None in found.values() else found  # type: ignore[return-value]

    def keep(self, key: str, ms: Milliseconds) -> None:
        """Times that were measured in turn; they replace those of the key."""
        self._new[key] = dict(ms)

    def from_file(self, key: str) -> bool:
        """Whether what `find` gives for the key was measured by an earlier call."""
        return key in self._read and key not in self._new

    def save(self) -> None:
        """Add what was measured to the file, which another process may have changed meanwhile."""
        if self._path is None or not self._new:
            return
        layers = _read(self._path)
        for key in self._new:  # the newest last
            layers.pop(key, None)
        layers.update(self._new)
        keys = list(layers)[-MAX_LAYERS:]
        while len(data := _encoded({key: layers[key] for key in keys})) > MAX_BYTES:
            keys = keys[len(keys) // 2 + 1 :]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, data)


@contextlib.contextmanager
def kept_times() -> Iterator[Times]:
    """The times of this machine; what is added inside is on disk afterwards."""
    times = Times(cache_file() if measures() else None)
    try:
        yield times
    finally:
        times.save()


def _encoded(layers: dict[str, Milliseconds]) -> bytes:
    return json.dumps({"machine": _machine(), "layers": layers}, indent=1).encode()


def _read(path: Path) -> dict[str, Milliseconds]:
    """The layers of a file; none of what is not as this module writes it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return {}
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("machine") != _machine():
        return {}
    layers = content.get("layers")
    if not isinstance(layers, dict):
        return {}
    return {key: ms for key, ms in layers.items() if _plausible(ms)}


def _plausible(ms: Any) -> bool:
    return isinstance(ms, dict) and all(
        isinstance(t, float) and math.isfinite(t) and t > 0 for t in ms.values()
    )
