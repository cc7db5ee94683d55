"""convert(): pack what runs faster packed, keep the rest dense, and say why."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.autotune import caller, compare_ms
from sparseprune.choose import WORTH_MEASURING, Layer, choose, share_weights, watch
from sparseprune.copying import copy_settled, copy_with
from sparseprune.errors import bad, suggest
from sparseprune.formats import FORMATS, Format, PackedWeight
from sparseprune.fuse import fuse_activations
from sparseprune.nn import SPARSE
from sparseprune.report import Report, Row

WHOLE_MARGIN = 0.97
"""The packed model is taken when its time is below this share of the dense one."""

UNSUPPORTED = (nn.Conv1d, nn.Conv3d, nn.modules.conv._ConvTransposeNd, nn.Bilinear, nn.RNNBase,
               nn.MultiheadAttention)  # fmt: skip
"""Weighty layers without a sparse twin: always named in the report."""


def convert(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | dict[str, Any],
    backend: str = "auto",
    format: str = "auto",
    keep_dense: str = "auto",
) -> nn.Module:
    """A copy of a pruned model whose sparse layers run packed wherever that is faster.

    Every Linear and Conv2d is timed dense and in each fitting format on the inputs that it really
    gets; the fastest stays. The given model is not changed. Exact zeros, Masks and
    torch.nn.utils.prune are all understood; parametrizations are made permanent in the copy. A
    ReLU, ReLU6 or Hardtanh module that alone reads a packed layer joins it and becomes an Identity.

    Args:
        model: any nn.Module.
        example_inputs: what model(...) takes: a tensor, a tuple of positional arguments or a dict
            of keywords; its shapes are what the choice is made for. Other shapes work as well.
        backend: "auto", or one of sparseprune.info()'s, for every packed layer.
        format: "auto", or the stem of one format ("csr", "bitmask").
        keep_dense: "auto" keeps a layer dense unless packed is faster by a margin; "never" packs
            every layer that a format can hold, whatever its speed (tests, benchmarks).

    Returns:
        A new module in eval mode with a ``report`` (:class:`sparseprune.Report`).

    Raises:
        ValueError: an unknown choice, a backend that refuses the device, a model without Linear
            or Conv2d layers.
        TypeError: model is not a module.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    formats = _check_arguments(model, backend, format, keep_dense)
    copy = copy_settled(model).eval()
    if not any(type(m) in SPARSE for m in copy.modules()):
        raise bad("convert", "model", "a model with Linear or Conv2d layers",
                  type(model).__name__, "there is nothing to convert")  # fmt: skip
    inputs = deepcopy(example_inputs)  # a model may change its inputs in place, run after run
    layers = _find_layers(copy)
    buffers = {buffer: buffer.clone() for buffer in copy.buffers()}
    with torch.no_grad():  # not inference_mode: the packed buffers must serve autograd too
        watch(layers, caller(copy, inputs))
        for shared in share_weights(layers):
            choose(shared, formats, backend, keep_dense)
        report = Report([layer.row for layer in layers])
        copy = _settle(copy, layers, report, inputs, keep_dense)
        for buffer, before in buffers.items():  # what the runs counted or cached
            buffer.copy_(before)
    report.rows += _unsupported(copy)
    copy.report = report  # type: ignore[assignment]
    return copy


def _check_arguments(
    model: object, backend: str, format: str, keep_dense: str
) -> tuple[Format, ...]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be an nn.Module, got {type(model).__name__}")
    if keep_dense not in ("auto", "never"):
        raise bad("convert", "keep_dense", "'auto' or 'never'", repr(keep_dense),
                  suggest(keep_dense, ["auto", "never"]))  # fmt: skip
    stems = list(dict.fromkeys(f.stem for f in FORMATS))
    if format not in ("auto", *stems):
        raise bad("convert", "format", "'auto' or the stem of a format", repr(format),
                  suggest(format, ["auto", *stems]))  # fmt: skip
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    if device.type == "meta":
        raise bad("convert", "model", "on a device that holds its weights", "meta",
                  "load them first")  # fmt: skip
    backends.choose(device, backend, None if format == "auto" else format)
    return tuple(f for f in FORMATS if format in ("auto", f.stem))


def _find_layers(model: nn.Module) -> list[Layer]:
    """Each layer object once, with every name that it has."""
    layers: dict[int, Layer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) not in SPARSE:
            continue
        if id(module) in layers:
            layers[id(module)].names.append(name)
            continue
        weight: Tensor = module.weight  # type: ignore[assignment]
        nonzeros = int(torch.count_nonzero(weight))
        row = Row(
            name=name or "(model)",
            kind=type(module).__name__,
            shape=tuple(weight.shape),
            pattern="unstructured" if nonzeros < weight.numel() else "dense",
            sparsity=1 - nonzeros / max(1, weight.numel()),
            nonzeros=nonzeros,
            dense_bytes=weight.nbytes,
            packed_bytes=weight.nbytes,
        )
        layers[id(module)] = Layer([name], module, row)
    return list(layers.values())


def _settle(
    copy: nn.Module, layers: list[Layer], report: Report, inputs: Any, keep_dense: str
) -> nn.Module:
    """Put the sparse layers in place, and dense ones back if the whole model is not faster."""
    dense_run = caller(copy, inputs)
    replacements = {layer.module: layer.sparse for layer in layers if layer.sparse is not None}
    if not replacements:
        report.dense_ms = report.sparse_ms = compare_ms({"dense": dense_run})["dense"]
        return copy
    sparse = copy_with(copy, replacements).eval()
    if (untraced := fuse_activations(sparse)) is not None:
        report.notes.append(f"activations stay layers of their own, fx traced none: {untraced}")
    runs = {"dense": dense_run, "sparse": caller(sparse, inputs)}
    try:
        runs["sparse"]()
    except Exception as error:  # the model's own code, which may use a weight past its layer
        reason = f"the model does not run with packed layers: {type(error).__name__}: {error}"
        report.dense_ms = report.sparse_ms = compare_ms({"dense": dense_run})["dense"]
        return _keep_dense(copy, layers, reason)
    for _ in range(2):  # a slower model is measured again before it is believed
        times = compare_ms(runs)
        report.dense_ms, report.sparse_ms = times["dense"], times["sparse"]
        if keep_dense == "never" or times["sparse"] <= WHOLE_MARGIN * times["dense"]:
            _name_fused(layers)
            return sparse
    report.notes.append(f"kept dense: packed, the whole model took {times['sparse']:.3f} ms")
    report.sparse_ms = report.dense_ms
    return _keep_dense(copy, layers, "the whole model was not faster with packed layers")


def _name_fused(layers: list[Layer]) -> None:
    for layer in layers:
        if layer.sparse is not None and layer.sparse.clamp != (None, None):
            layer.row.kernel += " + activation"


def _keep_dense(copy: nn.Module, layers: list[Layer], reason: str) -> nn.Module:
    for layer in layers:
        if layer.sparse is not None:
            layer.row.reason = reason
            layer.row.kernel, layer.row.packed_bytes = "dense", layer.row.dense_bytes
    return copy


def _unsupported(model: nn.Module) -> list[Row]:
    """A row for every layer with pruned or prunable weights that has no sparse twin."""
    rows = []
    for name, module in model.named_modules():
        if type(module) in SPARSE or isinstance(module, (*SPARSE.values(), PackedWeight)):
            continue
        for parameter, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2 or isinstance(module, nn.Embedding):
                continue
            nonzeros = int(torch.count_nonzero(weight))
            sparsity = 1 - nonzeros / max(1, weight.numel())
            if isinstance(module, UNSUPPORTED) or sparsity >= WORTH_MEASURING:
                rows.append(
                    Row(
                        name=f"{name}.{parameter}".removesuffix(".weight"),
                        kind=type(module).__name__,
                        shape=tuple(weight.shape),
                        pattern="unstructured" if sparsity else "dense",
                        sparsity=sparsity,
                        nonzeros=nonzeros,
                        dense_bytes=weight.nbytes,
                        packed_bytes=weight.nbytes,
                        reason=f"{type(module).__name__} has no sparse kernel",
                    )
                )
    return rows
