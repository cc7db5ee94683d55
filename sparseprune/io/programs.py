"""The programs of a planned model as data: its contracted graph, its arguments, each program.

What a program owns is not in the file but derived again from the layers that are. The text of a
program, the tensors that its steps point at, and the steps of the graph are all checked against
the rebuilt model before anything can run.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sparseprune.formats import PackedWeight
from sparseprune.io import forms
from sparseprune.io import graph as graphs
from sparseprune.io.values import MAX_DEPTH, NAMED, decode, encode
from sparseprune.ops.run import parse
from sparseprune.program.arguments import Arguments, TensorForm
from sparseprune.program.lower import Lowering
from sparseprune.program.planned import Planned, become, unplan
from sparseprune.program.program import Program
from sparseprune.program.sizes import Sizes
from sparseprune.program.steps import Input

Spec = dict[str, Any]
NAME = re.compile(r"program_\d+_*", re.ASCII)


def take_off(model: nn.Module) -> tuple[Spec | None, str | None]:
    """What :func:`attach` needs, if there are programs, and why they cannot be saved, if so.

    The model has none afterwards, nor has any module in it.
    """
    spec: Spec | None = None
    reason: str | None = None
    try:
        spec = _describe(model) if isinstance(model, Planned) else None
    except ValueError as error:
        reason = str(error)
    for name, module in list(model.named_modules()):
        if name and isinstance(module, Planned):
            reason = f"those of {name!r} belong to a part of the model"
        unplan(module)
    return spec, reason


def _describe(model: Planned) -> Spec:
    order, args, kwargs = model._arguments.spec()
    programs: dict[str, Any] = {name: model._modules[name] for name in model._program_names}  # type: ignore[attr-defined]
    return {
        "order": order,
        "args": [_form(a) for a in args],
        "kwargs": {name: _form(value) for name, value in kwargs.items()},
        "graph": graphs.to_steps(model._graph),
        "sizes": None if model._sizes is None else _of_sizes(model._sizes),
        "form": None if model._form is None else forms.encode(model._form),
        "programs": {name: program.spec() for name, program in programs.items()},
    }


def attach(model: nn.Module, spec: Spec) -> None:
    """Make a rebuilt model run these programs. In place; unchanged where it fails.

    Raises:
        ValueError: anything that is not allowed or does not fit the model.
    """
    if not any(isinstance(m, PackedWeight) for m in model.modules()):
        raise ValueError("programs without a packed weight")
    kwargs = {name: _formed(data) for name, data in spec["kwargs"].items()}
    args = [_formed(data) for data in spec["args"]]
    labels = [*_names(spec["order"])[: len(args)], *kwargs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two arguments of one name among {labels}")
    arguments = Arguments.from_spec(_names(spec["order"]), args, kwargs)
    sizes = _sizes(spec.get("sizes"), arguments, model)
    form = forms.decode(spec["form"]) if spec.get("form") is not None else None
    programs: dict[str, Program] = {}
    for name, each in spec["programs"].items():
        if not NAME.fullmatch(name) or hasattr(model, name):
            raise ValueError(f"{name[:80]!r} is not the name of a program, or taken")
        programs[name] = Program.from_spec(each, model)
    try:
        for name, program in programs.items():
            model.add_module(name, program)
        graph = graphs.from_steps(spec["graph"], model)
        lowering = Lowering(graph, programs, sizes, form)
        _check_calls(lowering, arguments)
        become(model, arguments, lowering)
    except BaseException:
        for name in programs:
            model._modules.pop(name, None)
        raise


def _of_sizes(sizes: Sizes) -> Spec:
    return {"names": sizes.names, "graph": graphs.to_steps(sizes.graph)}


def _sizes(spec: Spec | None, arguments: Arguments, model: nn.Module) -> Sizes | None:
    """What tells the numbers of the graph; its own graph takes the tensors of a call."""
    if spec is None:
        return None
    sizes = Sizes(graphs.from_steps(spec["graph"], model), _names(spec["names"]))
    (*_, output) = sizes.graph.nodes
    told = output.args[0]
    if not isinstance(told, tuple) or len(told) != len(sizes.names):
        raise ValueError(f"{len(sizes.names)} sizes, of which the graph tells others")
    _check_taken(sizes.graph, arguments.names)
    return sizes


def _check_taken(graph: fx.Graph, names: list[str]) -> None:
    taken = [(n.target, n.args) for n in graph.nodes if n.op == "placeholder"]
    if taken != [(name, ()) for name in names]:
        raise ValueError(f"a graph that takes {taken}, not {names}")


def _check_calls(lowering: Lowering, arguments: Arguments) -> None:
    """The graph takes the sizes and tensors of a call, gives the leaves of its output, and gives
    each program as many tensors as it reads.
    """
    graph, programs = lowering.graph, lowering.programs
    sizes = lowering.sizes.names if lowering.sizes is not None else []
    _check_taken(graph, [*sizes, *arguments.names])
    (*_, output) = graph.nodes
    leaves = output.args[0]
    if (form := lowering.form) is not None:
        if not isinstance(leaves, list) or len(leaves) != form.num_leaves:
            raise ValueError(f"a graph whose output is not {form.num_leaves} values")
        pytree.tree_unflatten([torch.zeros(())] * form.num_leaves, form)  # with keys that it has
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in programs:
            continue
        steps = parse(programs[node.target].text)
        inputs = sum(isinstance(step, Input) for step in steps)
        nodes = all(isinstance(a, fx.Node) for a in node.args)
        if node.kwargs or len(node.args) != inputs or not nodes:
            raise ValueError(f"{node.target!r} called with {node.args}, it takes {inputs} tensors")


def _names(names: list[str]) -> list[str]:
    """Names of arguments."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{str(name)[:80]!r} is not the name of an argument")
    return list(names)


def _form(value: Any) -> Any:
    if isinstance(value, TensorForm):
        return {"tensor": [str(value.dtype).removeprefix("torch."), value.rank]}
    if isinstance(value, list):
        return [_form(v) for v in value]
    if type(value) is tuple:
        return {"tuple": [_form(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _form(v)] for key, v in value.items()]}
    return encode(value)


def _formed(data: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"arguments nested more than {MAX_DEPTH} deep")
    if isinstance(data, list):
        return [_formed(d, depth + 1) for d in data]
    if not isinstance(data, dict) or len(data) != 1:
        return decode(data)
    ((tag, content),) = data.items()
    if tag == "tuple":
        return tuple([_formed(d, depth + 1) for d in content])
    if tag == "dict":
        return {decode(key): _formed(d, depth + 1) for key, d in content}
    if tag != "tensor":
        return decode(data)
    dtype, rank = content
    known: dict[str, torch.dtype] = NAMED["dtype"]
    if dtype not in known or type(rank) is not int:
        raise ValueError(f"an argument that is a tensor {str(content)[:80]}")
    return TensorForm(known[dtype], rank)
