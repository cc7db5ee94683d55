"""profile(): parameters, MACs, bytes and milliseconds of a model, dense, pruned or converted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sparseprune import clocks
from sparseprune.autotune import caller, compare_ms, device_of
from sparseprune.errors import bad, bad_type
from sparseprune.modes import evaluating
from sparseprune.profile.costs import LayerProfile, Profile
from sparseprune.profile.counting import LAYERS, Count, Counter
from sparseprune.profile.inventory import Stored, stored_tensors

__all__ = ["LayerProfile", "Profile", "profile"]


def profile(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | dict[str, Any],
    latency: bool = True,
) -> Profile:
    """What a model costs on these inputs, in eval mode; the model is left as it was.

    Products that a module computes itself (attention, functional calls) are counted where torch
    shows them as matrix products; a causal mask is counted as full. Layers that hide theirs, such
    as nn.LSTM, are listed in `not_counted`. Latency per layer is taken inside the running model.

    Args:
        model: dense, pruned (also by torch.nn.utils.prune) or converted. Without latency it may
            be on the meta device, where every weight counts as nonzero.
        example_inputs: what model(...) takes: a tensor, a tuple or list of positional arguments
            or a dict of keywords.
        latency: whether to measure milliseconds: medians, in about a second.

    Raises:
        TypeError: model is not a module.
        ValueError: latency is asked of a model on the meta device.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module):
        raise bad_type("profile", "model", "a torch.nn.Module", type(model).__name__, "pass one")
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if latency and on_meta:
        way_out = "the meta device has no speed"
        raise bad("profile", "latency", "False for a model on the meta device", latency, way_out)
    run = caller(model, example_inputs)
    counter = Counter(model)
    with evaluating(model), torch.no_grad():
        with counter.watching():
            run()
        tensors = stored_tensors(model)
        result = _sum_up(list(counter.counts.values()), tensors)
        if latency:
            result.latency_ms = compare_ms(
                {"model": run}, clock=clocks.of_models(device_of(model))
            )["model"]
            _time_layers(result.rows, model, run)
    if on_meta:
        result.notes.append("on the meta device every weight counts as nonzero")
    return result


def _sum_up(counts: list[Count], tensors: list[Stored]) -> Profile:
    """The rows of all modules that multiply, the totals, and who could not be counted."""
    own: dict[int, list[Stored]] = {}
    for tensor in tensors:
        own.setdefault(id(tensor.owner), []).append(tensor)
    used = {owner for count in counts for owner in count.owners}
    rows, not_counted = [], []
    for count in counts:
        mine = own.get(id(count.module), [])
        if count.known and (count.calls or id(count.module) not in used):
            rows.append(_layer_row(count, mine))
        if count.macs:
            weights = [tensor for owner in sorted(count.owners) for tensor in own.get(owner, [])]
            rows.append(_product_row(count, weights))
        elif count.calls and not count.known and _hides_products(count.module, mine):
            not_counted.append(f"{count.name} ({type(count.module).__name__})")
    distinct = [tensor for tensor in tensors if tensor.name == tensor.first]
    return Profile(rows, not_counted=not_counted, **_sizes(distinct))


class _Sizes(TypedDict):
    parameters: int
    nonzeros: int
    dense_bytes: int
    stored_bytes: int


def _sizes(tensors: list[Stored]) -> _Sizes:
    return {
        "parameters": sum(tensor.numel for tensor in tensors),
        "nonzeros": sum(tensor.nonzeros for tensor in tensors),
        "dense_bytes": sum(tensor.dense_bytes for tensor in tensors),
        "stored_bytes": sum(tensor.stored_bytes for tensor in tensors),
    }


def _layer_row(count: Count, own: list[Stored]) -> LayerProfile:
    weight = next(tensor for tensor in own if tensor.name.endswith("weight"))
    return LayerProfile(
        name=count.name,
        kind=_kind(count.module),
        runs=weight.format if count.calls else "not called",
        tied_to="" if weight.first == weight.name else weight.first,
        calls=count.calls,
        macs=count.positions * weight.numel,
        nonzero_macs=count.positions * weight.nonzeros,
        executed_macs=count.positions * weight.multiplied,
        activation_bytes=count.activation_bytes,
        **_sizes(own),
    )


def _product_row(count: Count, own: list[Stored]) -> LayerProfile:
    return LayerProfile(
        name=count.name,
        kind=type(count.module).__name__ if own else ", ".join(sorted(count.ops)),
        calls=count.calls,
        macs=count.macs,
        nonzero_macs=count.nonzero_macs,
        executed_macs=count.macs,
        activation_bytes=count.activation_bytes,
        **_sizes(own),
    )


def _kind(module: nn.Module) -> str:
    """The type; a parametrized layer's made-up type gives way to the layer's own."""
    layer = next((k for k in LAYERS if isinstance(module, k)), None)
    return layer.__name__ if layer is not None else type(module).__name__


def _hides_products(module: nn.Module, own: list[Stored]) -> bool:
    """Whether a module without products should have had some."""
    quiet = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
    leaf = not any(True for _ in module.children())
    return leaf and not isinstance(module, quiet) and any(len(t.shape) > 1 for t in own)


def _time_layers(rows: list[LayerProfile], model: nn.Module, run: Callable[[], object]) -> None:
    """Fill in the latency of every row whose module contains no other row."""
    modules = {name or "(model)": module for name, module in model.named_modules()}
    called = {row.name: row for row in rows if row.calls}
    held = {name: set(modules[name].modules()) for name in called}
    alone = [n for n in called if not any(modules[o] in held[n] for o in called if o != n)]
    for name, ms in _layer_ms({name: modules[name] for name in alone}, run).items():
        called[name].latency_ms = ms


def _layer_ms(
    modules: dict[str, nn.Module], run: Callable[[], object], seconds: float = 0.3, rounds: int = 7
) -> dict[str, float]:
    """Median ms of each module inside the running model, all its calls in one run summed."""
    spent = dict.fromkeys(modules, 0.0)
    times: dict[str, list[float]] = {name: [] for name in modules}

    def start(name: str, *_: object) -> None:
        spent[name] -= _now_ms()

    def stop(name: str, *_: object) -> None:
        spent[name] += _now_ms()

    with ExitStack() as stack:
        for name, module in modules.items():
            # first of all hooks, so that masks applied by hooks are part of the time
            before = module.register_forward_pre_hook(partial(start, name), prepend=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(partial(stop, name)).remove)
        end = _now_ms() + seconds * 1e3
        while modules and (rounds > 0 or _now_ms() < end):
            spent.update(dict.fromkeys(modules, 0.0))
            run()
            for name, ms in spent.items():
                times[name].append(ms)
            rounds -= 1
    return {name: statistics.median(values) for name, values in times.items()}


def _now_ms() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3
