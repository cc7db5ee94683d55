"""One case at one sparsity: prepare every runtime, compare outputs, then time in turn."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .cases import Case
from .prepared import Prepared
from .problem import Problem
from .results import Row, Times
from .runtimes import Peer
from .timing import PAUSE_S, take_turns


def measure(
    case: Case,
    sparsity: float,
    peers: Sequence[Peer],
    *,
    threads: int,
    seconds: float = 2.0,
    pause_s: float = PAUSE_S,
    announce: Callable[[str], None] = lambda step: None,
) -> list[Row]:
    """One row per peer, timed or not, with its note.

    torch must compute with `threads` threads already (`sparseprune.machine.threads`).
    """
    title = f"{case.title} at {sparsity:.0%}"
    differences: dict[str, float] = {}
    notes = {peer.name: peer.missing() for peer in peers}
    ready: dict[str, Prepared] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        announce(f"{title}: build")
        problem = Problem(*case.pruned(sparsity), Path(folder))
        for peer in [peer for peer in peers if not notes[peer.name]]:
            announce(f"{title}: {peer.name}")
            try:
                prepared = peer.prepare(problem, threads)
                stack.callback(prepared.close)
                found = prepared.output()
            except Exception as error:  # foreign code: what stops one must not stop the others
                notes[peer.name] = f"failed: {type(error).__name__}: {error}"[:200]
                differences[peer.name] = float("nan")
                continue
            differences[peer.name], notes[peer.name] = check(peer, found, problem.expected)
            if not notes[peer.name]:
                ready[peer.name] = prepared
        announce(f"{title}: timing")
        times = take_turns(ready, seconds, pause_s)
    return _rows(case, sparsity, peers, times, notes, differences)


def check(peer: Peer, found: Tensor, expected: Tensor) -> tuple[float, str]:
    """The largest difference / the largest output, and why the output is wrong ("" if right)."""
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
        return float("nan"), f"refused: output of shape {shapes}"
    scale = float(expected.abs().max()) or 1.0
    difference = float((found.to(torch.float32) - expected).abs().max()) / scale
    if difference <= peer.tolerance:  # false for NaN as well
        return difference, ""
    return difference, f"refused: output differs by {difference:.1e}, allowed {peer.tolerance:.0e}"


def _rows(
    case: Case,
    sparsity: float,
    peers: Sequence[Peer],
    times: dict[str, list[float]],
    notes: dict[str, str],
    differences: dict[str, float],
) -> list[Row]:
    """One row per peer, with its ratio to the fastest dense one."""
    found = {name: Times.of(ms) for name, ms in times.items()}
    dense = {p.name: found[p.name].ms for p in peers if p.dense and p.fp32 and p.name in found}
    best = min(dense, key=lambda name: dense[name], default="")
    return [
        Row(
            case=case.title,
            sparsity=sparsity,
            runtime=peer.name,
            times=found.get(peer.name),
            best_dense=best,
            best_dense_ms=dense.get(best),
            difference=differences.get(peer.name),
            note=notes[peer.name],
        )
        for peer in peers
    ]
