"""The forms that a whole converted model can take, timed against each other."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparseprune import backends, clocks, tuning
from sparseprune.autotune import caller, compare_ms, device_of
from sparseprune.choose import MARGIN, Layer
from sparseprune.copying import copy_with
from sparseprune.errors import summary
from sparseprune.formats import PackedWeight
from sparseprune.fuse import fuse_activations
from sparseprune.nn import SPARSE
from sparseprune.offers import engine
from sparseprune.program.planned import Planned, narrow, plan
from sparseprune.program.tune import tune
from sparseprune.report import Report
from sparseprune.state import unchanged
from sparseprune.tuning import Times

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WHOLE_MARGIN = 0.97
"""A packed model is taken when its time is below this share of the dense one."""

NARROW = "the forward branches on sizes: not all batches run as programs, others layer by layer"


@dataclass
class Form:
    """A model and the layers that are packed in it."""

    model: nn.Module
    packed: dict[Layer, nn.Module]


def settle(
    dense: nn.Module,
    folded: nn.Module,
    layers: list[Layer],
    report: Report,
    inputs: Any,
    backend: str,
    keep_dense: str,
    kept: Times,
) -> nn.Module:
    """The fastest form of the model, with times and kernels in the report.

    With SPARSEPRUNE_TUNE=0 nothing is timed: programs where they exist and are estimated to be
    faster, else the layers that are.

    Args:
        dense: the settled copy, and the result where nothing is faster.
        folded: the same without batch normalisation, which `layers` belong to.
        layers: after :func:`sparseprune.choose.choose`.
        report: of these layers; filled in.
        inputs: example inputs.
        backend, keep_dense: as for ``convert``.
        kept: times of this machine.
    """
    with ExitStack() as stack:  # what the runs leave in the forms is taken back
        forms = _forms(folded, layers, report, inputs, backend, kept, stack)
        return _settle(dense, layers, report, inputs, forms, keep_dense)


def _settle(
    dense: nn.Module,
    layers: list[Layer],
    report: Report,
    inputs: Any,
    forms: dict[str, Form],
    keep_dense: str,
) -> nn.Module:
    run, clock = caller(dense, inputs), clocks.of_models(device_of(dense))
    runs = {"dense": run, **{name: caller(form.model, inputs) for name, form in forms.items()}}
    for name in list(forms):
        try:
            runs[name]()
        except Exception as error:  # the model's own code, which may use a weight past its layer
            _explain(layers, f"the model does not run with packed layers: {summary(error)}")
            del forms[name], runs[name]
    if not tuning.measures():
        report.notes.append("nothing was timed (SPARSEPRUNE_TUNE=0): a model of cost has chosen")
        form = _estimated(forms, keep_dense)
        if form is not None:
            _name_kernels(layers, form)
        return dense if form is None else form.model
    if not forms:
        report.dense_ms = report.sparse_ms = compare_ms({"dense": run}, clock=clock)["dense"]
        return dense
    for _ in range(2):  # a slower model is measured again before it is believed
        times = compare_ms(runs, clock=clock)
        best = min(forms, key=times.__getitem__)
        report.dense_ms, report.sparse_ms = times["dense"], times[best]
        if keep_dense == "never" or times[best] <= WHOLE_MARGIN * times["dense"]:
            _name_kernels(layers, forms[best])
            return forms[best].model
    report.notes.append(f"kept dense: packed, the whole model took {times[best]:.3f} ms")
    report.sparse_ms = report.dense_ms
    _explain(layers, "the whole model was not faster with packed layers")
    return dense


def _estimated(forms: dict[str, Form], keep_dense: str) -> Form | None:
    """Programs before layers, each if all that it packs is estimated to be faster than dense."""
    for form in (forms[name] for name in ("programs", "layers") if name in forms):
        times = [layer.ms for layer in form.packed if layer.ms is not None]
        dense, packed = sum(ms[0] for ms in times), sum(ms[1] for ms in times)
        if keep_dense == "never" or packed <= MARGIN * dense:
            return form
    return None


def _forms(
    folded: nn.Module,
    layers: list[Layer],
    report: Report,
    inputs: Any,
    backend: str,
    kept: Times,
    stack: ExitStack,
) -> dict[str, Form]:
    """Packed layer by layer where each of them is faster; and as programs, every layer packed."""
    forms: dict[str, Form] = {}
    faster = {layer: layer.sparse for layer in layers if layer.sparse is not None}
    if faster:
        forms["layers"] = Form(_packed(folded, faster, report), faster)
        stack.enter_context(unchanged(forms["layers"].model))
    every = {
        layer: layer.best
        for layer in layers
        if layer.best is not None and not _depthwise(layer.module)
    }
    device = next(folded.parameters()).device
    if every and device.type == "cpu" and backends.choose(device, backend) is backends.CPU:
        own = _own(every)
        model = _packed(folded, own, None)
        stack.enter_context(unchanged(model))
        if (reason := plan(model, inputs)) is None:
            forms["programs"] = Form(model, own)
            if narrow(model):
                report.notes.append(NARROW)
            if tuning.measures() and (kept_as := tune(model, inputs, kept)) is not None:
                report.notes.append(kept_as)
        elif len(every) > 1:
            report.notes.append(f"no programs, the layers run one by one: {reason}")
    return forms


def _own(packed: dict[Layer, nn.Module]) -> dict[Layer, nn.Module]:
    """Twins whose weights can be packed otherwise without a change to the given ones."""
    weights: dict[int, PackedWeight] = {}
    twins: dict[Layer, nn.Module] = {}
    for layer, best in packed.items():
        weight: PackedWeight = best.weight  # type: ignore[assignment]
        own = weights.setdefault(id(weight), weight.twin())
        twins[layer] = SPARSE[type(layer.module)].from_dense(layer.module, weight=own)  # type: ignore[arg-type]
    return twins


def _depthwise(module: nn.Module) -> bool:
    """Its few weights per channel gain nothing from an index; programs have a step for it."""
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels > 1


def _packed(folded: nn.Module, packed: dict[Layer, nn.Module], report: Report | None) -> nn.Module:
    model = copy_with(folded, {layer.module: twin for layer, twin in packed.items()}).eval()
    if (untraced := fuse_activations(model)) is not None and report is not None:
        report.notes.append(f"activations stay layers of their own, fx traced none: {untraced}")
    return model


def _name_kernels(layers: list[Layer], form: Form) -> None:
    """Rows tell what runs in the chosen form."""
    program = " in a program" if isinstance(form.model, Planned) else ""
    for layer in layers:
        twin: Any = form.packed.get(layer)
        if twin is None:
            layer.row.reason = layer.row.reason or "depthwise: too few weights to repay an index"
            continue
        fused = " + activation" if twin.clamp != (None, None) else ""
        layer.row.kernel = f"{twin.weight.name} {engine(twin)}{fused}{program}"
        layer.row.block = getattr(twin.weight, "block", 0)
        layer.row.packed_bytes, layer.row.reason = twin.weight.nbytes, ""


def _explain(layers: list[Layer], reason: str) -> None:
    for layer in layers:
        if layer.sparse is not None:
            layer.row.reason = reason
