"""The forward of a model as a graph, recorded while the example runs through it.

torch.fx gives a forward stand-ins for tensors, which have no shape to ask for. Here it gets the
tensors of the example, and every function of torch that it calls is recorded as torch.fx would. A
size is a number with a node, so that the graph serves other sizes where it is only passed on. Where
the forward needs an answer, as in ``if x.shape[1] > 8``, it gets that of the example, and the graph
checks that answer. What depends on the values in a tensor is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparseprune.errors import place, summary
from sparseprune.program.arguments import Arguments
from sparseprune.program.calls import ANSWERS, EFFECTS, SIZES, VALUES, Spelled, spell
from sparseprune.program.numbers import KINDS, Number, plain
from sparseprune.program.sizes import NUMBER, Sizes, of_length, part, same
from sparseprune.program.tracing import NotTraced, Tracer, run
from sparseprune.state import unchanged

BY_VALUES = "sparseprune_by_values"
"""Key in the meta of nodes whose sizes depend on the values in tensors."""


def record(
    model: nn.Module, arguments: Arguments, example: Sequence[Tensor]
) -> tuple[fx.Graph, Sizes | None, pytree.TreeSpec | None]:
    """The graph of what the forward does with the example.

    Returns:
        The graph; what tells the numbers that it takes before its tensors, and which calls it
        serves; the structure of its output, if it gives the leaves.

    Raises:
        NotTraced: the forward depends on values in tensors, draws random numbers or writes into
            its buffers.
    """
    kept = [*model.parameters(), *model.buffers()]
    counted = [x for x in kept if not x.is_inference()]  # torch refuses to write into the others
    versions = [x._version for x in counted]
    try:
        with torch.inference_mode(False), torch.no_grad(), unchanged(model):
            tracer = ExampleTracer(arguments, [x.clone() for x in example])
            graph = run(tracer, model)
            if versions != [x._version for x in counted]:
                raise NotTraced("the forward writes into its parameters or buffers")
        if tracer.refusal is not None:
            raise tracer.refusal
    except NotTraced as refusal:
        raise NotTraced(f"{refusal}{place(refusal)}") from refusal
    return graph, part(graph, dict(model.named_modules(remove_duplicate=False))), tracer.form


class Recorded(Tensor, fx.Proxy):
    """A tensor of the example that is a node of the graph as well."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a tensor has no {name!r}")


class _Calls(TorchFunctionMode):
    """Hands every function of torch to the tracer."""

    def __init__(self, tracer: ExampleTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._tracer.call_torch(func, args, kwargs or {})


class _Values(TorchDispatchMode):
    """Notices whether sizes may come from the values in tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tags = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
        if tags.intersection(func.tags):
            by_numbers = func is torch.ops.aten.index.Tensor and not any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            )
            self.read |= not by_numbers
        return func(*args, **(kwargs or {}))


class ExampleTracer(Tracer):
    """Runs the forward on the example and records what it does.

    Attributes:
        form: the structure of the output, whose leaves the graph gives; None for a tensor.
        refusal: why there is no graph, should the forward have caught that error.
    """

    def __init__(self, arguments: Arguments, example: Sequence[Tensor]) -> None:
        super().__init__(arguments)
        self._example = example
        self._settled: set[tuple[fx.Node, Any]] = set()
        self._inside_leaf = False
        self.form: pytree.TreeSpec | None = None
        self.refusal: NotTraced | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The tensors of the example, and the forward with everything else filled in."""
        nodes = [self.create_node("placeholder", name, (), {}) for name in self._arguments.names]
        tensors = [self._recorded(x, n) for x, n in zip(self._example, nodes, strict=True)]

        def forward(root: nn.Module, *tensors: Any) -> Any:
            with _Calls(self):
                result = self.call(root_fn, root, tensors)
            if isinstance(result, Tensor):
                return result
            leaves, self.form = pytree.tree_flatten(result)
            for leaf in leaves:
                if not isinstance(leaf, (Tensor, type(None), bool, int, float, str)):
                    self._refuse(f"the forward gives a {type(leaf).__name__}")
            return leaves

        return forward, [self.root, *tensors]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As before, with the reason kept."""
        try:
            return super().create_node(*args, **kwargs)
        except NotTraced as refusal:
            self.refusal = refusal
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Parameters and buffers as they are; their nodes are made where they are used."""
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does, with shapes as plain tuples and nodes as they are."""
        if isinstance(a, (Recorded, Number)):
            if a.tracer is not self:
                self._refuse("the forward keeps tensors of an earlier run")
            return a.node
        if isinstance(a, fx.Node):
            return a
        return super().create_arg(tuple(a) if isinstance(a, torch.Size) else a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A leaf runs unseen and is one node."""
        if self._inside_leaf or not self.is_leaf_module(m, path := self.path_of_module(m)):
            return forward(*args, **kwargs)

        def alone() -> Any:
            self._inside_leaf = True
            try:
                with torch._C.DisableTorchFunction():
                    return forward(*plain(args), **plain(kwargs))
            finally:
                self._inside_leaf = False

        return self._record(Spelled(f"layer {path}", "call_module", path, args), alone, kwargs)

    def call_torch(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function of torch gives, recorded."""
        return self._record(
            spell(function, args, kwargs), lambda: function(*plain(args), **plain(kwargs)), kwargs
        )

    def _record(self, call: Spelled, run: Callable[[], Any], kwargs: dict[str, Any]) -> Any:
        try:
            with _Values() as values:
                result = run()
        except Exception as error:  # which the forward may catch, and go another way
            self.refusal = NotTraced(summary(error))
            raise
        tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result))
        if not tensors and call.name not in EFFECTS:
            return self._answered(call, kwargs, result)
        node = self._node(call, kwargs)
        if values.read or any(BY_VALUES in n.meta for n in node.all_input_nodes):
            node.meta[BY_VALUES] = True
        return self._recorded(result, node)

    def _node(self, call: Spelled, kwargs: dict[str, Any]) -> fx.Node:
        args = self.create_arg(call.args), self.create_arg(kwargs)
        return self.create_node(call.op, call.target, *args)

    def _recorded(self, value: Any, node: fx.Node) -> Any:
        """A result with its node, or its parts with theirs."""
        if isinstance(value, Tensor):
            recorded: Any = value.as_subclass(Recorded)
            recorded.node, recorded.tracer = node, self
            return recorded
        if not isinstance(value, (tuple, list)):
            if value is not None:
                self._refuse(f"{node.target} gives a {type(value).__name__}")
            return value
        parts = []
        for i, each in enumerate(value):
            inner = self.create_node("call_function", operator.getitem, (node, i), {})
            inner.meta.update(node.meta)
            parts.append(self._recorded(each, inner))
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        if node.op != "call_module":  # a split gives as many as there are
            self._check_length(node, len(parts))
        return type(value)(parts)

    def _answered(self, call: Spelled, kwargs: dict[str, Any], result: Any) -> Any:
        """What was asked of tensors: a number with its node, or an answer that is checked."""
        name = call.name
        leaves = pytree.tree_leaves((call.args, kwargs))
        asked = [leaf for leaf in leaves if isinstance(leaf, (Tensor, Number))]
        if not asked:
            return result
        if name not in SIZES and name not in ANSWERS:
            self._refuse("the forward depends on the values in a tensor" if name in VALUES else
                         f"the forward asks a tensor for {name!r}")  # fmt: skip
        if not any(isinstance(a, (Recorded, Number)) for a in asked):
            return result  # of a parameter or a buffer, which keeps its form
        if any(BY_VALUES in a.node.meta for a in asked if isinstance(a, Recorded)):
            self._refuse("the forward reads sizes that depend on the values in a tensor")
        node = self._node(call, kwargs)
        node.meta[NUMBER] = int
        if isinstance(result, torch.Size):
            rank = self.create_node("call_method", "dim", (node.args[0],), {})
            self._check(rank, len(result))
            parts = [self._number(v, operator.getitem, (node, i)) for i, v in enumerate(result)]
            return torch.Size(parts)
        if name in SIZES:
            return KINDS[int](result, node, self)
        self._check(node, result)
        return result

    def _number(self, value: Any, function: Any, args: Any) -> Any:
        node = self.create_node("call_function", function, self.create_arg(args), {})
        node.meta[NUMBER] = type(value)
        return KINDS[type(value)](value, node, self)

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """A number made from others; of a comparison the answer, which is checked."""
        value = function(*plain(args))
        if type(value) in KINDS:
            return self._number(value, function, args)
        node = self.create_node("call_function", function, self.create_arg(args), {})
        self._check(node, value)
        return value

    def settle(self, number: Number) -> Any:
        """Its value in the example, which is checked."""
        self._check(number.node, number.value)
        return number.value

    def _check(self, node: fx.Node, answer: Any) -> None:
        node.meta[NUMBER] = type(answer)
        if (node, answer) not in self._settled:
            self._settled.add((node, answer))
            self.create_node("call_function", same, (node, answer), {})

    def _check_length(self, node: fx.Node, count: int) -> None:
        if BY_VALUES in node.meta:
            self._refuse("the forward makes as many tensors as the values in one say")
        self.create_node("call_function", of_length, (node, count), {})

    def _refuse(self, why: str) -> None:
        self.refusal = NotTraced(why)
        raise self.refusal
