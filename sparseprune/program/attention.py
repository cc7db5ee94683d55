"""Attention in a graph: found however its heads are taken apart, and written as one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import add, matmul
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseprune.program.masks import Masks, Scores, scores_of
from sparseprune.program.moves import Probes, back, factor, first_channel, joined, repeated
from sparseprune.program.rotary import (
    Tables,
    Turned,
    heads_of,
    rotate,
    table_of_tokens,
    turned_heads,
)
from sparseprune.program.steps import Triple

PRODUCTS = ("matmul", "bmm", torch.matmul, torch.bmm, matmul)
SUMS, FILLS = (add, torch.add), ("masked_fill", torch.masked_fill)
SOFTMAXES = ("softmax", torch.softmax, F.softmax)


@dataclass(frozen=True)
class Found:
    """One attention: `node` is its result, as tokens, `chain` what stands between it and those."""

    node: fx.Node
    arguments: tuple[Any, ...]
    chain: list[fx.Node]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    first: Triple,
    strides: Triple,
    heads: int,
    head: int,
    group: int,
    causal: bool,
    scale: float,
) -> Tensor:
    """softmax(scale q k^T + mask) v of every head, from channels `first`, `strides` apart.

    query, key, value: [..., tokens, channels]; mask: [..., 1, queries, keys]; group: heads of
    queries that share one of keys and values.
    """
    read = zip((query, key, value), first, strides, (1, group, group), strict=True)
    q, k, v = (
        heads_of(x, at, stride, heads // times, head).transpose(-2, -3).repeat_interleave(times, -3)
        for x, at, stride, times in read
    )
    mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return mixed.transpose(-2, -3).flatten(-2)


def attentions(graph: fx.Graph, modules: dict[str, nn.Module], probes: Probes) -> Iterator[Found]:
    """Every attention whose queries, keys and values are the heads of some tokens."""
    masks: Masks = {}
    tables: Tables = {}
    for node in list(graph.nodes):
        core = _fused(node, probes) or _spelled(node, modules, probes)
        if core is not None and (found := _found(core, probes, masks, tables)) is not None:
            yield found


@dataclass(frozen=True)
class _Core:
    """softmax(scale q k^T) v of [sequences, heads, tokens, channels of a head].

    One head may have no dimension of its own.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    turned: bool  # k is [..., channels, tokens]
    causal: bool
    scale: float | None
    mask: Any
    fill: float | None  # what masked scores become; None: the mask is added, or says what is seen
    inner: list[fx.Node]
    grouped: bool = False  # fewer heads of keys and values are allowed


def _fused(node: Any, probes: Probes) -> _Core | None:
    if node.target is not F.scaled_dot_product_attention:
        return None

    def core(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: Any = 0.0,
        is_causal: Any = False,
        scale: Any = None,
        enable_gqa: Any = False,
    ) -> _Core | None:
        if dropout_p != 0 or type(is_causal) is not bool or type(enable_gqa) is not bool:
            return None
        number = None if scale is None else probes.number(scale)
        if scale is not None and number is None:
            return None
        return _Core(node, query, key, value, False, is_causal, number, attn_mask, None, [],
                     enable_gqa)  # fmt: skip

    return core(*node.args, **node.kwargs)


def _spelled(node: Any, modules: dict[str, nn.Module], probes: Probes) -> _Core | None:
    """(softmax(q @ k * scale) @ v), where the scale may also be one of q or k."""
    if node.target not in PRODUCTS or len(node.args) != 2:
        return None
    weights, value = node.args
    inner = list[Any]()
    while _is_nothing(weights, modules):
        inner.append(weights)
        weights = weights.args[0]
    if not _is_softmax(weights, modules, probes) or not isinstance(value, fx.Node):
        return None
    inner.append(weights)
    scores, mask, fill = weights.args[0], None, None
    if isinstance(scores, fx.Node) and scores.target in (*SUMS, *FILLS):
        inner.append(scores)
        fill = probes.number(scores.args[2]) if scores.target in FILLS else None
        scores, mask = scores.args[:2]
        if (
            not isinstance(mask, fx.Node)
            or inner[-1].kwargs
            or (fill is None and inner[-1].target in FILLS)
        ):
            return None
    scores, scale = _scaled(scores, probes, inner)
    if not isinstance(scores, fx.Node) or scores.target not in PRODUCTS or len(scores.args) != 2:
        return None
    inner.append(scores)
    query, key = list[Any](scores.args)
    if any(len(n.users) != 1 for n in inner):
        return None
    return _Core(node, query, key, value, True, False, scale, mask, fill, inner)


def _is_nothing(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Dropout in eval mode, or a float32 tensor made one."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.Dropout and not module.training
    if node.target is F.dropout:
        given: Any = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
        return bool(given.get("training", True) is False or given.get("p", 0.5) == 0)
    made = [*node.args[1:], *node.kwargs.values()]
    return node.target == "to" and made == [torch.float32]


def _is_softmax(node: Any, modules: dict[str, nn.Module], probes: Probes) -> bool:
    """Over the last dimension."""
    shape = probes.shape(0, node)
    if shape is None:
        return False
    last = len(shape) - 1
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.Softmax and module.dim in (-1, last)
    options = {name: value for name, value in node.kwargs.items() if name != "_stacklevel"}
    dim = node.args[1] if len(node.args) == 2 else options.pop("dim", None)
    same = options.pop("dtype", torch.float32) in (None, torch.float32) and not options
    return node.target in SOFTMAXES and dim in (-1, last) and same


def _scaled(node: Any, probes: Probes, inner: list[fx.Node]) -> tuple[Any, float]:
    """What is multiplied by numbers, and their product."""
    scale = 1.0
    while isinstance(node, fx.Node) and (by := factor(node, probes)) is not None:
        inner.append(node)
        scale, node = scale * by, node.args[0]
    return node, scale


@dataclass(frozen=True)
class _Heads:
    """Heads of tokens `source`, from channel `first`, `stride` apart, each `times` times in turn.

    rotation: what turns them on the way, before they are repeated.
    """

    node: fx.Node
    source: fx.Node
    first: int
    stride: int
    times: int
    chain: list[fx.Node]
    factor: float
    rotation: Turned | None = None


def _heads(node: fx.Node, turned: bool, probes: Probes) -> _Heads | None:
    """Where heads [N, heads, T, channels] come from; turned: tokens come last."""
    shape = probes.shape(0, node)
    if shape is None or len(shape) not in (3, 4):
        return None
    head = shape[-2] if turned else shape[-1]
    source, chain, by = back(node, probes)
    found = first_channel(source, chain, (*shape[1:-2], head), turned, probes)
    if found is not None:
        return _Heads(node, source, *found, chain, by)
    if len(shape) == 3 or (rotation := turned_heads(source, probes)) is None:
        return None
    times, before = repeated(source, chain, turned, probes), _heads(rotation.x, False, probes)
    if times is None or before is None or before.times != 1 or before.rotation is not None:
        return None
    chain = [*before.chain, *rotation.inner, source, *chain]
    factor = by * before.factor
    first, stride = before.first, before.stride
    return _Heads(source, before.source, first, stride, times, chain, factor, rotation)


def _tokens(
    heads: _Heads, probes: Probes, tables: Tables
) -> tuple[fx.Node, int, int, list[fx.Node]] | None:
    """The tokens that attention reads, where heads begin, how far apart, and what was made."""
    if heads.rotation is None:
        return heads.source, heads.first, heads.stride, []
    found = [
        table_of_tokens(table, heads.rotation.x, probes, tables)
        for table in (heads.rotation.cos, heads.rotation.sin)
    ]
    if None in found:
        return None
    (cos, made), (sin, more) = found  # type: ignore[misc]
    shapes = [probes.shape(p, heads.rotation.x) or () for p in range(len(probes.shapes))]
    _, count, _, head = shapes[0]
    with heads.node.graph.inserting_after(heads.node):
        where = (heads.first, heads.stride, count, head)
        taken = (heads.source, cos, sin, *where, heads.rotation.pairs)
        node = heads.node.graph.call_function(rotate, taken)
    for found_, (n, _, tokens, _) in zip(probes.shapes, shapes, strict=True):
        found_[node.name] = (n, tokens, count * head)
    return node, 0, head, [*made, *more, node]


def _found(core: _Core, probes: Probes, masks: Masks, tables: Tables) -> Found | None:
    shape = probes.shape(0, core.query)
    if shape is None or len(shape) not in (3, 4):
        return None
    heads, head = shape[1] if len(shape) == 4 else 1, shape[-1]
    scale = head**-0.5 if core.scale is None else core.scale
    read = [
        _heads(node, turned, probes)
        for node, turned in ((core.query, False), (core.key, core.turned), (core.value, False))
    ]
    if any(r is None for r in read):
        return None
    query, key, value = [r for r in read if r is not None]
    group = _group(core, query, key, value, heads, probes)
    if group is None or value.factor != 1:
        return None
    scale *= query.factor * key.factor
    forward = [core.node] if len(shape) == 3 else joined(core.node, heads, head, probes)
    if forward is None:
        return None
    mask, made = None, list[fx.Node]()
    if core.mask is not None:
        q, k = query.source, key.source
        sizes = Scores(core.query, core.key, core.turned, q is k or q.args[:1] == k.args[:1])
        mask, made = scores_of(core.mask, core.fill, sizes, probes, masks)
        if mask is None:
            return None
    tokens = [_tokens(r, probes, tables) for r in (query, key, value)]
    if any(t is None for t in tokens):
        return None
    sources, firsts, strides, more = zip(*[t for t in tokens if t is not None], strict=True)
    arguments = (*sources, mask, firsts, strides, heads, head, group, core.causal, scale)
    chain = [core.node, *core.inner, *query.chain, *key.chain, *value.chain, *made]
    chain += [node for nodes in more for node in nodes] + forward[:-1]
    return Found(forward[-1], arguments, [n for n in chain if n is not forward[-1]])


def _group(
    core: _Core, query: _Heads, key: _Heads, value: _Heads, heads: int, probes: Probes
) -> int | None:
    """Heads of queries for each of keys and values, if it is one number."""
    groups = set()
    for node, each in ((core.key, key), (core.value, value)):
        shape = probes.shape(0, node) or ()
        count = shape[1] if len(shape) == 4 else 1
        if count not in (heads, 1) and not core.grouped:
            return None
        groups.add(heads // count * each.times if heads % count == 0 else 0)
    return groups.pop() if len(groups) == 1 and query.times == 1 and 0 not in groups else None
