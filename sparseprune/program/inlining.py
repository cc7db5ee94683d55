"""Layers of several parts written out in a graph, so that programs see the parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import add, getitem
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from sparseprune.nn import MultiheadAttention
from sparseprune.program.arguments import Arguments
from sparseprune.program.moves import Probes

OF_WEIGHTS = ("need_weights", "average_attn_weights")
"""Arguments that say nothing of the first output."""


def inline(graph: fx.Graph, modules: dict[str, nn.Module], probes: Probes) -> bool:
    """Write out every layer that ``WRITERS`` knows; tell whether there is one.

    Those that read batches without masks. What a graph computes stays the same up to rounding.
    """
    found = [(node, given) for node in graph.nodes if (given := _given(node, modules, probes))]
    for node, given in found:
        path = str(node.target)
        with graph.inserting_before(node):
            out = WRITERS[type(modules[path])](graph, f"{path}.", modules[path], *given)
        if isinstance(modules[path], MultiheadAttention):
            for part in list(node.users):
                part.replace_all_uses_with(out)
                graph.erase_node(part)
        node.replace_all_uses_with(out)
        graph.erase_node(node)
    return bool(found)


def write_out(model: nn.Module, arguments: Arguments) -> fx.Graph | None:
    """The graph of a model that is itself an encoder or a layer of one, called without masks."""
    _, args, kwargs = arguments.spec()
    if type(model) not in WRITERS or _refuses(model) or len(args) + len(kwargs) > 1:
        return None
    graph = fx.Graph()
    graph.output(WRITERS[type(model)](graph, "", model, *map(graph.placeholder, arguments.names)))
    return graph


def _given(node: fx.Node, modules: dict[str, nn.Module], probes: Probes) -> list[Any] | None:
    """The tensors of a call, where no more than that is given or read."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if type(module) not in WRITERS or _refuses(module):
        return None
    given = inspect.signature(module.forward).bind(*node.args, **node.kwargs).arguments  # type: ignore[union-attr]
    tensors = [given.pop(name) for name in ("query", "key", "value", "src") if name in given]
    masks = [value for name, value in given.items() if name not in OF_WEIGHTS]
    if any(m is not None and m is not False for m in masks):
        return None
    if any(len(probes.shape(0, x) or ()) != 3 for x in tensors):
        return None
    if isinstance(module, MultiheadAttention):
        parts = all(u.target is getitem and (u.args[1] == 0 or not u.users) for u in node.users)
        return tensors if parts else None
    return tensors


def _refuses(module: Any) -> bool:
    """Whether a layer, or one inside, does more or less than its type says."""
    inside = list(module.modules())
    known = all(
        type(layer) is nn.TransformerEncoderLayer for layer in getattr(module, "layers", ())
    )
    attentions = [m for m in inside if isinstance(m, (MultiheadAttention, nn.MultiheadAttention))]
    ours = all(isinstance(m, MultiheadAttention) for m in attentions)
    alike = len({m.batch_first for m in attentions}) == 1
    watched = any(
        m.training or m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
        for m in inside
    )
    return not (known and ours and alike) or watched


def _batch_first(write: Callable[..., fx.Node]) -> Callable[..., fx.Node]:
    """For layers whose batch is the first dimension or the second."""

    def written(graph: fx.Graph, prefix: str, module: Any, *tensors: fx.Node) -> fx.Node:
        attention = next(m for m in module.modules() if isinstance(m, MultiheadAttention))
        if attention.batch_first:
            return write(graph, prefix, module, *tensors)
        turned = {x: graph.call_method("transpose", (x, 0, 1)) for x in tensors}
        out = write(graph, prefix, module, *(turned[x] for x in tensors))
        return graph.call_method("transpose", (out, 0, 1))

    return written


def _attention(graph: fx.Graph, prefix: str, module: Any, *tensors: fx.Node) -> fx.Node:
    apart = []
    for name, x in zip("qkv", tensors, strict=True):
        y = graph.call_module(f"{prefix}{name}_proj", (x,))
        y = graph.call_method("unflatten", (y, -1, (module.num_heads, -1)))
        apart.append(graph.call_method("transpose", (y, 1, 2)))
    mixed = graph.call_function(F.scaled_dot_product_attention, tuple(apart))
    mixed = graph.call_method("transpose", (mixed, 1, 2))
    joined = graph.call_method("flatten", (mixed, 2))
    return graph.call_module(f"{prefix}out_proj", (joined,))


def _layer(graph: fx.Graph, prefix: str, module: nn.TransformerEncoderLayer, x: fx.Node) -> fx.Node:
    def norm(name: str, x: fx.Node) -> fx.Node:
        return graph.call_module(f"{prefix}{name}", (x,))

    def attend(x: fx.Node) -> fx.Node:
        return _attention(graph, f"{prefix}self_attn.", module.self_attn, x, x, x)

    def feed(x: fx.Node) -> fx.Node:
        y, activation = norm("linear1", x), module.activation
        own = isinstance(activation, nn.Module)
        y = norm("activation", y) if own else graph.call_function(activation, (y,))
        return norm("linear2", y)

    for name, part in (("norm1", attend), ("norm2", feed)):
        if module.norm_first:
            x = graph.call_function(add, (x, part(norm(name, x))))
        else:
            x = norm(name, graph.call_function(add, (x, part(x))))
    return x


def _encoder(graph: fx.Graph, prefix: str, module: nn.TransformerEncoder, x: fx.Node) -> fx.Node:
    for i, layer in enumerate(module.layers):
        x = _layer(graph, f"{prefix}layers.{i}.", layer, x)  # type: ignore[arg-type]
    return x if module.norm is None else graph.call_module(f"{prefix}norm", (x,))


WRITERS: dict[type[Any], Callable[..., fx.Node]] = {
    MultiheadAttention: _batch_first(_attention),
    nn.TransformerEncoderLayer: _batch_first(_layer),
    nn.TransformerEncoder: _batch_first(_encoder),
}
"""Exact type of a layer -> what writes its parts: graph, prefix of their paths, layer, tensors."""
