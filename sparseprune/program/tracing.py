"""The forward of a model as a graph, for the arguments that its example gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparseprune.copying import copy_with
from sparseprune.errors import summary
from sparseprune.nn import LEAVES
from sparseprune.program.arguments import Arguments
from sparseprune.state import changed, state_of

Shape = tuple[int, ...]


class NotTraced(Exception):
    """Why a model has no graph."""


class Tracer(fx.Tracer):
    """Sparse layers are leaves; only the tensors among the arguments become placeholders."""

    trace_asserts = True
    proxy_buffer_attributes = True  # a buffer is read when the graph runs, not baked in

    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self._arguments = arguments

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, LEAVES)
        return own or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise NotTraced("the forward uses autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self._arguments.names]

        return lambda root, *tensors: self.call(root_fn, root, tensors), [self.root, *proxies]

    def call(self, root_fn: Callable[..., Any], root: nn.Module, tensors: Sequence[Any]) -> Any:
        """What the forward gives for these tensors."""
        args, kwargs = self._arguments.filled(tensors)
        given, form = pytree.tree_flatten((args, kwargs))
        result = root_fn(root, *args, **kwargs)
        left, now = pytree.tree_flatten((args, kwargs))
        if form != now or any(a is not b for a, b in zip(given, left, strict=True)):
            raise NotTraced("the forward changes a list or dict that it was given")
        return result


def trace(model: nn.Module, arguments: Arguments) -> fx.Graph:
    """The graph of calls to layers, functions and methods that the example leads to.

    Raises:
        NotTraced: the forward branches on values, draws random numbers or makes tensors.
    """
    return run(Tracer(arguments), model)


def run(tracer: Tracer, model: nn.Module) -> fx.Graph:
    """The graph that a tracer finds, on a copy of the model.

    Raises:
        NotTraced: it finds none, or one that does less than the forward.
    """
    drawn = torch.get_rng_state()
    copy = copy_with(model, {})  # tracing runs the forward and may leave its placeholders behind
    try:
        graph = tracer.trace(copy)
    except NotTraced:
        raise
    except Exception as error:  # the model's own code
        raise NotTraced(summary(error)) from error
    finally:
        same = torch.equal(drawn, torch.get_rng_state())
        torch.set_rng_state(drawn)
    if not same:
        raise NotTraced("the forward draws random numbers, which would become constants")
    if (name := changed(copy, state_of(model))) is not None:
        raise NotTraced(f"the forward sets {name!r}, which a graph would leave as it is")
    known = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    known |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            raise NotTraced("the forward uses a tensor that is neither parameter nor buffer")
    return graph


class Shapes(fx.Interpreter):
    """Runs a graph and notes every number, and the shape of every float32 or bool tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.found: dict[str, Shape] = {}
        self.numbers: dict[str, Any] = {}
        self.flags: dict[str, Shape] = {}
        self.given: dict[str, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder" and isinstance(value, Tensor):
            self.given[n.name] = tuple(value.shape)
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            self.found[n.name] = tuple(value.shape)
        elif isinstance(value, Tensor) and value.dtype == torch.bool:
            self.flags[n.name] = tuple(value.shape)
        elif isinstance(value, (int, float, torch.Size)):
            self.numbers[n.name] = value
        return value
