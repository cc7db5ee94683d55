"""Which form of a layer is fastest on the inputs that it really gets: dense or packed, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.autotune import compare_ms
from sparseprune.formats import Format, PackedWeight
from sparseprune.nn import SPARSE
from sparseprune.nn.conv_program import ByProgram
from sparseprune.report import Row

MARGIN = 0.9
"""A packed layer is taken when its time is below this share of the dense one."""
WORTH_MEASURING = 0.3
"""Sparsity below which no kernel here has ever won."""
TOLERANCE = 1e-3
"""Largest difference from dense, relative to the largest output, that passes the check."""


@dataclass(eq=False)
class Layer:
    """A prunable layer of the copy and what was seen of it.

    ``best`` is its fastest packed form, if there is one; ``sparse`` the same where it beats dense.
    """

    names: list[str]
    module: nn.Module
    row: Row
    calls: dict[tuple[Any, ...], tuple[Tensor, int]] = field(default_factory=dict)
    best: nn.Module | None = None
    sparse: nn.Module | None = None


def watch(layers: list[Layer], run: Callable[[], object]) -> None:
    """Run the model once and note what each layer was called with."""

    def watcher(layer: Layer) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            key = (tuple(x.shape), x.dtype)
            layer.calls[key] = x, layer.calls.get(key, (x, 0))[1] + 1

        return note

    handles = [
        layer.module.register_forward_pre_hook(watcher(layer), with_kwargs=True) for layer in layers
    ]
    # torch's fused transformer paths read weights past the modules and nest padded batches.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def share_weights(layers: list[Layer]) -> list[list[Layer]]:
    """Layers grouped by the weight that they hold: tied ones share one packed weight."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(layer.module.weight), []).append(layer)
    return list(groups.values())


def choose(tied: list[Layer], formats: tuple[Format, ...], backend: str, keep_dense: str) -> None:
    """Give each of these layers a sparse twin, or the reason why not."""
    for layer in tied:
        reason = _refusal(layer, keep_dense)
        if reason is None:
            _measure(layer, formats, backend, keep_dense)
        else:
            layer.row.reason = reason
    for layer in tied[1:]:
        layer.row.tied_to = tied[0].row.name
    _share([layer for layer in tied if layer.sparse is not None])
    _share([layer for layer in tied if layer.best is not None and layer.sparse is None])


def _share(tied: list[Layer]) -> None:
    for layer in tied[1:]:
        weight: PackedWeight = tied[0].best.weight  # type: ignore[union-attr, assignment]
        twin = SPARSE[type(layer.module)].from_dense(layer.module, weight=weight)  # type: ignore[arg-type]
        layer.best, layer.sparse = twin, twin if layer.sparse is not None else None


def _refusal(layer: Layer, keep_dense: str) -> str | None:
    if not layer.calls:
        return "not called with the example inputs, or its weight is read directly by its parent"
    if keep_dense == "auto" and layer.row.sparsity < WORTH_MEASURING:
        if layer.row.sparsity == 0:
            return "no zeros"
        return f"sparsity below {WORTH_MEASURING:.0%} does not repay an index"
    return None


def _measure(layer: Layer, formats: tuple[Format, ...], backend: str, keep_dense: str) -> None:
    """Time dense and every fitting format on the layer's own inputs; take the fastest."""
    dense, row, twin = layer.module, layer.row, SPARSE[type(layer.module)]
    weight, groups = twin.dense_weight(dense)  # type: ignore[arg-type]
    refusals = {f.name: _misfit(f, twin.kind) or f.refuses(weight, groups) for f in formats}
    fitting = [f for f in formats if refusals[f.name] is None]
    tokens = min(x.shape[:-1].numel() for x, _ in layer.calls.values())
    candidates: dict[str, nn.Module] = {}
    for f in [f for f in fitting if f.worth(weight, tokens)] or fitting:
        candidate = twin.from_dense(dense, f)  # type: ignore[arg-type]
        candidate.weight.use(backend)
        if (wrong := _wrong(dense, candidate, layer)) is None:
            candidates[f.name] = candidate
        else:
            refusals[f.name] = wrong
    if not candidates:
        row.reason = "; ".join(dict.fromkeys(r for r in refusals.values() if r))
        return
    times = _time({"dense": dense, **candidates}, layer)
    best = min(candidates, key=times.__getitem__)
    row.dense_ms, row.sparse_ms = times["dense"], times[best]
    layer.best = candidates[best]
    if keep_dense == "auto" and times[best] > MARGIN * times["dense"]:
        gain = times["dense"] / times[best]
        row.reason = f"packed is not {1 / MARGIN - 1:.0%} faster ({best}: {gain:.2f}x)"
        return
    layer.sparse = layer.best


def _misfit(f: Format, kind: str) -> str | None:
    return None if kind in f.serves else f"{f.stem} serves {', '.join(f.serves)} alone"


def engine(layer: Any) -> str:
    """Who computes this packed layer: an instruction set, a device or the reference."""
    weight: PackedWeight = layer.weight
    device = weight.device.type
    if weight.namespace == backends.REFERENCE.namespace:
        return "reference"
    if isinstance(layer, ByProgram) and not backends.has_kernel(f"{weight.namespace}::run", device):
        return "reference"
    return backends.current_isa() if device == "cpu" else device


def _wrong(dense: nn.Module, sparse: nn.Module, layer: Layer) -> str | None:
    """Why the packed layer may not take over, judged by its outputs; None if they agree."""
    for x, _ in layer.calls.values():  # forward: hooks stay with the layer, whatever its form
        try:
            got = sparse.forward(x)
        except (RuntimeError, ValueError) as error:
            return str(error).splitlines()[0]
        expected = dense.forward(x)
        finite = expected.isfinite()
        scale = expected[finite].abs().max().item() if bool(finite.any()) else 0.0
        error_ = (got - expected)[finite].abs().max().item() if bool(finite.any()) else 0.0
        if not error_ <= TOLERANCE * scale + 1e-6:
            return f"its output differs from dense by {error_:.1e}"
    return None


def _time(candidates: dict[str, nn.Module], layer: Layer) -> dict[str, float]:
    totals = dict.fromkeys(candidates, 0.0)
    for x, count in layer.calls.values():
        calls: dict[str, Callable[[], object]] = {
            name: partial(module.forward, x) for name, module in candidates.items()
        }
        for name, ms in compare_ms(calls, seconds=0.1).items():
            totals[name] += ms * count
    return totals
