"""From a converted model to a graph in which whole regions are programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparseprune.program import mutation
from sparseprune.program.arguments import Arguments
from sparseprune.program.attention import attend, attentions
from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.expressions import expressions
from sparseprune.program.fusing import fuse
from sparseprune.program.inlining import inline, write_out
from sparseprune.program.moves import Probes
from sparseprune.program.norms import norms
from sparseprune.program.patterns import FUNCTIONS, METHODS, MODULES
from sparseprune.program.program import Program
from sparseprune.program.recording import record
from sparseprune.program.regions import Before, Kinds, Region, find, in_order
from sparseprune.program.sizes import Sizes, compiled
from sparseprune.program.spellings import drop_sizes, spell
from sparseprune.program.steps import Input, Output
from sparseprune.program.text import to_text
from sparseprune.program.tracing import NotTraced, Shape, Shapes, trace

Modules = dict[str, nn.Module]


@dataclass
class Lowering:
    """A graph that calls programs.

    Attributes:
        graph: takes the numbers of ``sizes``, then the tensors of a call.
        programs: by the name of their submodule.
        sizes: what tells those numbers, and which calls the graph serves; None where it takes none.
        form: the structure of the output, whose leaves the graph gives; None where it gives it.
    """

    graph: fx.Graph
    programs: dict[str, Program]
    sizes: Sizes | None = None
    form: pytree.TreeSpec | None = None

    def function(self) -> Callable[..., Any]:
        """The graph as a method; the program itself where there is nothing else (2 us a call)."""
        if (form := self.form) is not None:
            leaves = compiled(self.graph)
            return lambda model, *taken: pytree.tree_unflatten(leaves(model, *taken), form)
        if name := self.alone():
            return lambda model, *tensors: model._modules[name](*tensors)
        run: Callable[..., Any] = compiled(self.graph)
        return run

    def alone(self) -> str | None:
        """The program that is all of the graph, if one is."""
        *inputs, call, output = self.graph.nodes
        plain = self.form is None and all(node.op == "placeholder" for node in inputs)
        alone = call.op == "call_module" and call.args == tuple(inputs) and output.args == (call,)
        return str(call.target) if plain and alone else None


def lower(model: nn.Module, arguments: Arguments, probes: list[list[Tensor]]) -> Lowering:
    """Trace a model and replace every region that is worth it by a program.

    Args:
        model: converted, in eval mode; not changed.
        arguments: how it is called.
        probes: tensors for these arguments; the first are the example, others have other sizes.

    Raises:
        NotTraced: there is no graph, or nothing in it for a program.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    graph, sizes, form = _graph(model, arguments, probes[0])
    probes = probes if sizes is None else _served(graph, sizes, model, probes)
    found = _probe(model, graph, probes)
    if inline(graph, modules, found):
        found = _probe(model, graph, probes)
    shapes = _shapes(found)
    chosen = spell(graph, shapes, lambda node: classify(node, modules, shapes) is not None)
    drop_sizes(graph, shapes)
    for each in attentions(graph, modules, found):
        chosen.choose(each.node, attend, each.arguments, each.chain)
    for made in (*norms(graph, found), *expressions(graph, found)):
        chosen.choose(made.node, made.function, (made.source,), made.inner, made.options)
    unread = chosen.unread(graph)
    left = [node for node in graph.nodes if node not in unread]
    lowered = {n: low for n in left if (low := classify(n, modules, shapes)) is not None}
    before, stay = mutation.order(graph, modules, lowered.__contains__)
    for node in stay & lowered.keys():
        del lowered[node]
    for node in [node for node in graph.nodes if _stays_outside(node, lowered)]:
        del lowered[node]
    kinds = Kinds(lowered, lambda n: -1 if (s := shapes(n)) is None else len(s[0]))
    regions = [r for r in find(graph, lowered, before) if _worth_it(r, lowered, kinds, shapes)]
    if not regions:
        raise NotTraced("no sparse layer stands next to another step that a program can do")
    chosen.settle({node for region in regions for node in region.nodes}, before)
    drop_sizes(graph, shapes, before)
    programs = {}
    for number, region in enumerate(regions):
        name = f"program_{number}"
        while name in model._modules or hasattr(model, name):
            name += "_"
        programs[name] = _program(region, lowered, kinds, shapes).bind(model)
    graph = _contract(graph, dict(zip(programs, regions, strict=True)), lowered, kinds, before)
    if sizes is not None:
        sizes = sizes.only(_read(graph, sizes.names), modules)
    return Lowering(graph, programs, sizes, form)


def _graph(
    model: nn.Module, arguments: Arguments, example: list[Tensor]
) -> tuple[fx.Graph, Sizes | None, pytree.TreeSpec | None]:
    """The graph of the forward; what it needs to know of sizes; the structure of its output."""
    if (written := write_out(model, arguments)) is not None:
        return written, None, None
    try:
        return trace(model, arguments), None, None
    except NotTraced:
        return record(model, arguments, example)


def _served(
    graph: fx.Graph, sizes: Sizes, model: nn.Module, probes: list[list[Tensor]]
) -> list[list[Any]]:
    """What the graph takes for each probe that it serves, and for longer sequences if it does."""
    taken = [[*n, *x] for x in probes if (n := sizes.of(model, x)) is not None]
    if sizes.of(model, probes[0]) is None:
        raise NotTraced("the forward does not do the same again")
    with suppress(Exception):  # no sequences
        longer = [torch.cat([x, x[:, :1]], 1) for x in probes[0]]
        if (numbers := sizes.of(model, longer)) is not None:
            Shapes(model, graph).run(*numbers, *(x.clone() for x in longer))
            taken.append([*numbers, *longer])
    return taken


def _read(graph: fx.Graph, names: list[str]) -> list[str]:
    """Those numbers that the graph still reads; the others are no longer taken."""
    read = []
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target in names:
            if node.users:
                read.append(str(node.target))
            else:
                graph.erase_node(node)
    return read


Probe = Callable[[Any], "tuple[Shape, ...] | None"]


def _probe(model: nn.Module, graph: fx.Graph, probes: list[list[Tensor]]) -> Probes:
    runs = [Shapes(model, graph) for _ in probes]
    for run, tensors in zip(runs, probes, strict=True):
        run.run(*tensors)
    return Probes(
        [run.found for run in runs],
        [run.numbers for run in runs],
        [run.flags for run in runs],
        [run.given for run in runs],
    )


def _shapes(probes: Probes) -> Probe:
    """The shapes of a node on every probe."""

    def shapes(node: Any) -> tuple[Shape, ...] | None:
        if not isinstance(node, fx.Node) or any(node.name not in run for run in probes.shapes):
            return None
        return tuple(run[node.name] for run in probes.shapes)

    return shapes


def classify(node: fx.Node, modules: Modules, shapes: Probe) -> Lowered | None:
    """How a program computes a node, or None."""
    if shapes(node) is None:
        return None
    call = Call(node, str(node.target) if node.op == "call_module" else "", shapes)
    first: tuple[Any, ...] = (call,)
    pattern: Callable[..., Lowered | None] | None = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        pattern, first = MODULES.get(type(module)), (call, module)
        if "forward" in vars(module):
            return None
    elif node.op == "call_function":
        pattern = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    elif node.op == "call_method":
        pattern = METHODS.get(str(node.target))
    if pattern is None:
        return None
    try:
        lowered = pattern(*first, *node.args, **node.kwargs)
    except TypeError:  # arguments that the pattern does not know
        return None
    if lowered is None or any(shapes(read) is None for read in lowered.reads):
        return None
    return lowered


def _stays_outside(node: fx.Node, lowered: dict[fx.Node, Lowered]) -> bool:
    """Whether a node that does nothing would only make others wait for a program."""
    low = lowered.get(node)
    if low is None or not low.free or any(read in lowered for read in low.reads):
        return False
    return any(user not in lowered for user in node.users)


def _worth_it(region: Region, lowered: dict[fx.Node, Lowered], kinds: Kinds, shapes: Probe) -> bool:
    steps = [node for node in region.nodes if not lowered[node].free]
    images = {
        len(shapes(n)[0])  # type: ignore[index]
        for n in region.nodes
        if kinds.made(n) == "image"
    } | {
        len(shapes(n)[0])  # type: ignore[index]
        for n, kind in region.inputs(lowered, kinds)
        if kind == "image"
    }
    sparse = any(lowered[node].sparse for node in steps)
    return sparse and len(steps) > 1 and len(images) <= 1 and bool(region.outputs())


def _program(
    region: Region, lowered: dict[fx.Node, Lowered], kinds: Kinds, shapes: Probe
) -> Program:
    builder = Builder()
    outside: dict[tuple[fx.Node, str], int] = {}
    masks = {node.args[3] for node in region.nodes if node.target is attend}
    for node, kind in region.inputs(lowered, kinds):
        shape = shapes(node)[0]  # type: ignore[index]
        image = kind == "image"
        outside[node, kind] = builder.add(
            Input,
            kind=kind,
            channels=0 if node in masks else shape[1 if image else -1],
            dims=len(shape) - 2 if image else 0,
        )
    inside: dict[fx.Node, int] = {}
    for node in region.nodes:
        values = [
            inside[read] if read in inside else outside[read, kinds.taken(node, read)]
            for read in lowered[node].reads
        ]
        inside[node] = lowered[node].emit(builder, values)
    steps = [*builder.steps, *(Output(inside[node]) for node in region.outputs())]
    text = to_text(fuse(steps))
    return Program(text, builder.sources, builder.derived.values(), builder.own)


def _contract(
    graph: fx.Graph,
    regions: dict[str, Region],
    lowered: dict[fx.Node, Lowered],
    kinds: Kinds,
    before: Before,
) -> fx.Graph:
    """The graph with one call in place of every region."""
    last = {node: region.nodes[-1] for region in regions.values() for node in region.nodes}
    calls = {region.nodes[-1]: name for name, region in regions.items()}
    contracted: Before = {}
    for node in graph.nodes:
        head = last.get(node, node)
        needs = {last.get(b, b) for b in before[node]} - {head}
        contracted.setdefault(head, set()).update(needs)
    new, copied = fx.Graph(), dict[fx.Node, Any]()
    for node in in_order([n for n in graph.nodes if last.get(n, n) is n], contracted):
        if node not in calls:
            copied[node] = new.node_copy(node, copied.__getitem__)
            continue
        region = regions[calls[node]]
        reads = tuple(copied[read] for read, _ in region.inputs(lowered, kinds))
        made = new.call_module(calls[node], reads)
        outputs = region.outputs()
        for i, output in enumerate(outputs):
            copied[output] = made if len(outputs) == 1 else new.call_function(getitem, (made, i))
    new.lint()
    return new
