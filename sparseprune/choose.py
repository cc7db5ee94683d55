"""Which form of a layer is fastest on the inputs that it really gets: dense or packed, and how.

Measured, or known from an earlier measurement (tuning.py), or estimated (costs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import clocks, costs, tuning
from sparseprune.autotune import compare_ms
from sparseprune.formats import Format, PackedWeight
from sparseprune.nn import SPARSE
from sparseprune.offers import Offer, offers_for
from sparseprune.report import Row
from sparseprune.tuning import Milliseconds, Times

MARGIN = 0.9
"""A packed layer is taken when its time is below this share of the dense one."""
WORTH_MEASURING = 0.3
"""Sparsity below which no kernel here has ever won."""
SECONDS = 0.05
"""For the candidates of a layer; what programs use is measured again in them."""
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference from dense, relative to the largest output, that passes the check: some steps
of what the dtype can tell apart, for dense kernels may round sums in between."""
TOLERANCE_ELSE = 1e-3
"""Of other dtypes; on CUDA dense convolutions in float32 round their inputs to TF32."""


@dataclass(eq=False)
class Layer:
    """A prunable layer of the copy and what was seen of it.

    ``best`` is its fastest packed form, if there is one; ``sparse`` the same where it beats dense.
    ``ms`` are the times of dense and best, measured or estimated; ``known`` tells whether the
    cache file had them. ``unserved``: formats would fit, but
    a backend could not take it.
    """

    names: list[str]
    module: nn.Module
    row: Row
    calls: dict[tuple[Any, ...], tuple[Tensor, int]] = field(default_factory=dict)
    best: nn.Module | None = None
    sparse: nn.Module | None = None
    ms: tuple[float, float] | None = None
    known: bool = False
    unserved: bool = False


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


def choose(
    tied: list[Layer], formats: tuple[Format, ...], backend: str, keep_dense: str, kept: Times
) -> None:
    """Give each of these layers a sparse twin, or the reason why not."""
    for layer in tied:
        reason = _refusal(layer, keep_dense)
        if reason is None:
            _compare(layer, formats, backend, keep_dense, kept)
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


def _compare(
    layer: Layer, formats: tuple[Format, ...], backend: str, keep_dense: str, kept: Times
) -> None:
    """Dense against every offer on the layer's own inputs; take the fastest."""
    dense, row, twin = layer.module, layer.row, SPARSE[type(layer.module)]
    tokens = min(x.shape[:-1].numel() for x, _ in layer.calls.values())
    found = offers_for(dense, tokens, formats, backend, keep_dense)
    offers, refusals, layer.unserved = found.by_name, found.refusals, found.unserved
    measures = tuning.measures()
    times = _known(layer, offers, kept) if measures else _estimates(layer, offers)
    candidates: dict[str, nn.Module] = {}
    for name in sorted(offers, key=lambda name: times[name] if times else 0):
        candidate = twin.from_dense(dense, offers[name].format)  # type: ignore[arg-type]
        unusable = _unusable(candidate, offers[name].backend)
        layer.unserved |= unusable is not None
        if (wrong := unusable or _wrong(dense, candidate, layer)) is None:
            candidates[name] = candidate
            if times:
                break
        else:
            refusals[name] = wrong
    if not candidates:
        row.reason = "; ".join(dict.fromkeys(r for r in refusals.values() if r))
        return
    times = times or _time({"dense": dense, **candidates}, layer, offers, kept)
    best = min(candidates, key=times.__getitem__)
    layer.best, layer.ms = candidates[best], (times["dense"], times[best])
    if measures:
        row.dense_ms, row.sparse_ms = layer.ms
    if keep_dense == "auto" and times[best] > MARGIN * times["dense"]:
        gain = f"{times['dense'] / times[best]:.2f}x" + ("" if measures else " estimated")
        row.reason = f"packed is not {1 / MARGIN - 1:.0%} faster ({best}: {gain})"
        return
    layer.sparse = layer.best


def _unusable(sparse: Any, backend: str) -> str | None:
    """Why this backend cannot take the packed layer; None where it computes from now on."""
    try:
        sparse.weight.use(backend)
    except (RuntimeError, ValueError) as error:  # of a library that lacks the device
        return str(error).splitlines()[0]
    return None


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
        tolerance = TOLERANCE.get(expected.dtype, TOLERANCE_ELSE)
        if not error_ <= tolerance * scale + 1e-6:
            return f"its output differs from dense by {error_:.1e}"
    return None


def _known(layer: Layer, offers: dict[str, Offer], kept: Times) -> Milliseconds | None:
    """The times of earlier measurements, if there are some of every candidate for every call."""
    if not offers:
        return None
    totals = dict.fromkeys(["dense", *offers], 0.0)
    keys = []
    for x, count in layer.calls.values():
        keys.append(_key(layer, x))
        ms = kept.find(keys[-1], _labels(totals, offers).values())
        if ms is None:
            return None
        for name, label in _labels(totals, offers).items():
            totals[name] += ms[label] * count
    layer.known = all(map(kept.from_file, keys))
    return totals


def _time(
    candidates: dict[str, nn.Module], layer: Layer, offers: dict[str, Offer], kept: Times
) -> Milliseconds:
    """Measured on the inputs of every call."""
    totals = dict.fromkeys(candidates, 0.0)
    labels = _labels(candidates, offers)
    for x, count in layer.calls.values():
        calls: dict[str, Callable[[], object]] = {
            name: partial(module.forward, x) for name, module in candidates.items()
        }
        times = compare_ms(calls, seconds=SECONDS, clock=clocks.of_layers(x.device))
        kept.keep(_key(layer, x), {labels[name]: ms for name, ms in times.items()})
        for name, ms in times.items():
            totals[name] += ms * count
    return totals


def _estimates(layer: Layer, offers: dict[str, Offer]) -> Milliseconds:
    """What the model of cost says, in ms."""
    twin = SPARSE[type(layer.module)]
    weight, groups = twin.dense_weight(layer.module)  # type: ignore[arg-type]
    totals = dict.fromkeys(["dense", *offers], 0.0)
    for x, count in layer.calls.values():
        rows, cols = weight.shape
        tokens = layer.module.forward(x).numel() // max(1, rows)
        work = costs.Work(twin.kind, rows, cols, layer.row.nonzeros, tokens, groups)
        totals["dense"] += costs.dense_ns(work) * count / 1e6
        for name, offer in offers.items():
            totals[name] += costs.packed_ns(offer.format.name, work, offer.engine) * count / 1e6
    return totals


def _labels(names: Iterable[str], offers: dict[str, Offer]) -> dict[str, str]:
    """Candidates as the cache names them: with who computes them."""
    return {name: offers[name].label if name in offers else name for name in names}


def _key(layer: Layer, x: Tensor) -> str:
    kind = SPARSE[type(layer.module)].kind
    return tuning.describe(layer.module, kind, layer.row.sparsity, x)
