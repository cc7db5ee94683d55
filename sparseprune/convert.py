"""convert(): pack what runs faster packed, keep the rest dense, and say why."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import backends
from sparseprune.autotune import caller
from sparseprune.choose import WORTH_MEASURING, Layer, choose, share_weights, watch
from sparseprune.copying import copy_settled, copy_with
from sparseprune.equivalents import equivalents
from sparseprune.errors import bad, suggest
from sparseprune.formats import FORMATS, Format, PackedWeight
from sparseprune.forms import settle
from sparseprune.nn import SPARSE, MultiheadAttention
from sparseprune.program.fold import fold_batchnorm
from sparseprune.report import Report, Row
from sparseprune.state import unchanged
from sparseprune.tuning import kept_times

UNSUPPORTED = (nn.modules.conv._ConvTransposeNd, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention)
"""Weighty layers without a sparse twin: always named in the report."""


def convert(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | dict[str, Any],
    backend: str = "auto",
    format: str = "auto",
    keep_dense: str = "auto",
) -> nn.Module:
    """A copy of a pruned model whose sparse layers run packed wherever that is faster.

    Every Linear, Conv1d, Conv2d and Conv3d is timed dense and in each fitting format on the inputs
    that it really gets. The given model is not changed. Exact zeros, Masks and
    torch.nn.utils.prune are all understood; parametrizations are made permanent in the copy. Where
    they are pruned, nn.MultiheadAttention, layers of one's own whose forward is one F.linear or
    F.conv, and Conv1D of transformers are taken for the layers that they are equivalent to
    (:mod:`sparseprune.equivalents`). Batch normalisation is folded into the layer before it; a
    ReLU, ReLU6 or Hardtanh module that alone reads a packed layer joins it.
    Where its forward can be traced, whole regions of it become programs: one native call that
    keeps its activations in the layout of its kernels (:mod:`sparseprune.program`), each weight
    packed as is fastest there. The fastest of dense, packed layers and programs stays.

    Times of layers, and of steps of programs, are kept on disk for each CPU, number of threads and
    version, in the folder SPARSEPRUNE_CACHE (by default ~/.cache/sparseprune; "0": not at all), so
    equal ones are timed once; the whole model is timed every time. With SPARSEPRUNE_TUNE=0 nothing
    is timed and a model of cost decides (:mod:`sparseprune.costs`): less well, but the same on
    every run.

    Args:
        model: any nn.Module.
        example_inputs: what model(...) takes: a tensor, a tuple of positional arguments or a dict
            of keywords, with tensors also in lists, tuples and dicts; its shapes are what the
            choice is made for. Other shapes work as well.
        backend: "auto", or one of sparseprune.info()'s, for every packed layer; where it can take
            some layers alone, the others stay dense.
        format: "auto", or the stem of one format ("csr", "bitmask", "sell", "block", "nm").
        keep_dense: "auto" keeps a layer dense unless packed is faster by a margin; "never" packs
            every layer that a format can hold, whatever its speed (tests, benchmarks).

    Returns:
        A new module in eval mode with a ``report`` (:class:`sparseprune.Report`).

    Raises:
        ValueError: an unknown choice, a backend that refuses the device or every layer, a model
            without Linear or convolution layers.
        TypeError: model is not a module.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    formats = _check_arguments(model, backend, format, keep_dense)
    dense = copy_settled(model).eval()
    instead = equivalents(dense, WORTH_MEASURING)
    if not instead and not any(type(m) in SPARSE for m in dense.modules()):
        raise bad("convert", "model", "a model with Linear, Conv1d, Conv2d or Conv3d layers",
                  type(model).__name__, "there is nothing to convert")  # fmt: skip
    inputs = deepcopy(example_inputs)  # a model may change its inputs in place, run after run
    # Not inference_mode: the packed buffers must serve autograd too.
    with torch.no_grad(), unchanged(dense):
        folded = copy_with(dense, instead).eval()
        with unchanged(folded):
            fold_batchnorm(folded, inputs)
            layers = _find_layers(folded)
            watch(layers, caller(folded, inputs))
        with kept_times() as kept:
            for shared in share_weights(layers):
                choose(shared, formats, backend, keep_dense, kept)
            _check_served(layers, backend)
            report = Report([layer.row for layer in layers])
            if known := sum(layer.known for layer in layers):
                report.notes.append(f"times of {known} layers from the cache")
            converted = settle(dense, folded, layers, report, inputs, backend, keep_dense, kept)
    report.rows += _unsupported(converted, instead.keys())
    converted.report = report  # type: ignore[assignment]
    return converted


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


def _check_served(layers: list[Layer], backend: str) -> None:
    """An error where the wanted backend takes none of the layers that would fit a format."""
    unserved = [layer.row.reason for layer in layers if layer.unserved]
    if backend != "auto" and unserved and all(layer.best is None for layer in layers):
        raise bad("convert", "backend", "one that serves some layer", repr(backend), unserved[0])


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


def _unsupported(model: nn.Module, known: Collection[nn.Module]) -> list[Row]:
    """A row for every layer with pruned or prunable weights that has no sparse twin.

    Those in `known` have rows already, as the layers that they are equivalent to.
    """
    rows = []
    for name, module in model.named_modules():
        packed = isinstance(module, (*SPARSE.values(), PackedWeight))
        if type(module) in SPARSE or packed or module in known:
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
                        reason=_why_dense(module, sparsity),
                    )
                )
    return rows


def _why_dense(module: nn.Module, sparsity: float) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        refused = MultiheadAttention.refuses(module)
        return refused or f"{sparsity:.0%} zeros do not repay an index"
    if type(module).__module__.startswith("torch.nn."):
        return f"{kind} has no sparse kernel"
    return f"{kind} uses it itself: weights of an nn.Linear or a convolution are packed"
