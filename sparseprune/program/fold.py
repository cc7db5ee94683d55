"""Batch normalisation in eval mode is a scale and a shift: both fit into the layer before it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseprune.autotune import caller
from sparseprune.copying import copy_with
from sparseprune.errors import summary
from sparseprune.fuse import LayerTracer
from sparseprune.program.arguments import Arguments
from sparseprune.program.tracing import NotTraced, trace

PAIRS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm1d: (nn.Conv1d, nn.Linear),
    nn.BatchNorm2d: (nn.Conv2d,),
    nn.BatchNorm3d: (nn.Conv3d,),
}
"""Normalisation -> the layers that it may follow. Exact types: a subclass may do more."""


def fold_batchnorm(model: nn.Module, example_inputs: Any = None) -> int | str:
    """Fold every batch normalisation that alone reads a layer into that layer. In place.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta, computed in
    float64. Zeros stay exact zeros; a bias is made where there was none; the normalisation becomes
    an Identity. Layers that are called twice, watched by hooks, tied or read directly stay.

    Args:
        model: a settled copy in eval mode. Its tensors are replaced, not written to.
        example_inputs: as for ``convert``. They settle arguments that branches depend on. With
            them, pairs of Linear and BatchNorm1d are folded too where the output is [N, features]:
            in [N, C, L] that normalises another dimension.

    Returns:
        The number of folded layers, or why the model could not be traced.
    """
    kinds = tuple(PAIRS)
    if not any(type(m) in kinds for m in model.modules()):
        return 0
    graphs = _graphs(model, example_inputs)
    if isinstance(graphs, str):
        return graphs
    first, *others = (_pairs(model, graph) for graph in graphs)
    found = [pair for pair in first if all(pair in other for other in others)]
    flat = _flat_linears([layer for layer, *_ in found], model, example_inputs)
    folded = 0
    for layer, norm, path in found:
        fits = not isinstance(layer, nn.Linear) or layer in flat
        if fits and _fold(layer, norm):
            model.set_submodule(path, nn.Identity().train(norm.training))
            folded += 1
    return folded


def _graphs(model: nn.Module, inputs: Any) -> list[fx.Graph] | str:
    """The forward with every argument open, and with those of the example; or why neither."""
    graphs: list[fx.Graph] = []
    reason = ""
    try:  # a copy, because tracing runs the forward and may leave its placeholders behind
        graphs.append(LayerTracer().trace(copy_with(model, {})))
    except Exception as error:  # the model's own code
        reason = summary(error)
    if inputs is not None:
        try:
            graphs.append(trace(model, Arguments(model, inputs)))
        except (NotTraced, ValueError) as error:
            reason = str(error)
    return graphs or reason


def _pairs(model: nn.Module, graph: fx.Graph) -> list[tuple[nn.Module, nn.Module, str]]:
    """(layer, normalisation, path of the normalisation) of all that belong to each other alone."""
    modules = dict(model.named_modules(remove_duplicate=False))
    called = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[str(node.target)]) for node in called)
    held = Counter(id(t) for m in model.modules() for t in m._parameters.values() if t is not None)
    for node in graph.nodes:
        if node.op == "get_attr":  # the forward reads the tensor past its layer
            parent, _, name = str(node.target).rpartition(".")
            held[id(getattr(modules[parent], name, None))] += 1
    found = []
    for node in called:
        layer, users = modules[str(node.target)], list(node.users)
        if len(users) != 1 or users[0].op != "call_module":
            continue
        path = str(users[0].target)
        norm = modules[path]
        if type(layer) not in PAIRS.get(type(norm), ()) or norm.training:
            continue
        pair = (layer, norm)
        alone = all(times[id(m)] == 1 and not _watched(m) for m in pair)
        tied = any(held[id(t)] > 1 for m in pair for t in m._parameters.values() if t is not None)
        if alone and not tied and norm.running_mean is not None:
            found.append((layer, norm, path))
    return found


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _flat_linears(layers: list[nn.Module], model: nn.Module, inputs: Any) -> set[nn.Module]:
    """The linear layers whose outputs are [N, features] on these inputs."""
    flat: set[nn.Module] = set()
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if inputs is None or not linears:
        return flat

    def note(layer: nn.Module, args: Any, output: Tensor) -> None:
        if output.dim() == 2:
            flat.add(layer)

    handles = [layer.register_forward_hook(note) for layer in linears]
    try:
        with torch.no_grad():
            caller(model, inputs)()
    finally:
        for handle in handles:
            handle.remove()
    return flat


def _fold(layer: Any, norm: Any) -> bool:
    """Whether the layer took the normalisation: not where a channel's scale has no end."""
    with torch.no_grad():
        weight, mean = layer.weight.double(), norm.running_mean.double()
        scale = 1 / (norm.running_var.double() + norm.eps).sqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -mean if layer.bias is None else layer.bias.double() - mean
        bias = shift * scale
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        scaled = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
        scaled = scaled.masked_fill(weight == 0, 0.0).to(layer.weight.dtype)
        if not bool(scaled.isfinite().all() & bias.isfinite().all()):
            return False
        grad = layer.weight.requires_grad
        layer.weight = nn.Parameter(scaled, requires_grad=grad)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=grad)
    return True
