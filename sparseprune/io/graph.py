"""The forward of a custom class: traced by torch.fx, stored as steps, rebuilt from allowed ones."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from sparseprune import paths
from sparseprune.io import allowed
from sparseprune.io.values import decode, encode
from sparseprune.program import sizes
from sparseprune.state import changed, state_of

Step = dict[str, Any]
PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
"""Names of layers and tensors in a graph; they end up in generated code."""


def must_be(value: object, fixed: object, name: str) -> None:
    """The check of an optional argument, which a saved graph knows with one value only.

    Raises:
        ValueError: it was given another value.
    """
    if value is not fixed and not (type(value) is type(fixed) and value == fixed):
        raise ValueError(
            f"forward: argument {name!r} must be {fixed!r}, the value that the saved graph was "
            f"traced with, got a {type(value).__name__}; load(path, model=...) restores the class"
        )


CHECKS: dict[str, Callable[..., Any]] = {
    "must_be": must_be,
    **{check.__name__: check for check in sizes.CHECKS},
}
"""Functions of this package that a step may call."""


class _Tracer(fx.Tracer):
    """Looks inside everything but `leaves`; optional arguments keep their defaults."""

    trace_asserts = True
    proxy_buffer_attributes = True  # a buffer is read when the graph runs, not baked in

    def __init__(self, leaves: set[nn.Module], fixed: tuple[type, ...]) -> None:
        super().__init__()
        self._leaves, self._fixed = leaves, fixed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._leaves

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise ValueError("the forward uses autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        run, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        return run, [self._settled(argument) for argument in arguments]

    def _settled(self, argument: Any) -> Any:
        """An argument with a plain default stands for that default: `if mask is None` is known."""
        if not isinstance(argument, fx.Proxy) or not argument.node.args:
            return argument
        default = argument.node.args[0]
        if not isinstance(default, self._fixed):
            return argument
        name = str(argument.node.target)
        self.create_proxy("call_function", must_be, (argument, default, name), {})
        return default


def trace(model: nn.Module, leaves: set[nn.Module]) -> fx.Graph:
    """The forward of `model` as a graph of calls to `leaves`, functions and methods.

    Constants made on the way are stored on `model`, as torch.fx does.

    Raises:
        ValueError: the forward cannot be traced, and why.
    """
    hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if hooked:
        raise ValueError(f"{hooked[0] or 'the model'!r} has forward hooks")
    kinds = {p.kind for p in inspect.signature(model.forward).parameters.values()}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY} <= kinds:
        raise ValueError("the forward has keyword-only arguments after *arguments")
    reasons = []
    # numbers first stay arguments; a second attempt fixes those that control loops and branches
    for fixed in ((type(None), bool, str), (type(None), bool, str, int, float)):
        drawn, before = torch.get_rng_state(), state_of(model)
        try:
            graph = _Tracer(leaves, fixed).trace(model)
            if (name := changed(model, before)) is not None:
                raise ValueError(f"it sets {name!r}, which a graph would leave as it is")
            if torch.equal(drawn, torch.get_rng_state()):
                return graph
            reasons.append("the forward draws random numbers, which would become constants")
        except Exception as error:  # the user's own code runs here, on stand-ins for tensors
            first_line = (str(error).splitlines() or [""])[0]
            reasons.append(f"{type(error).__name__}: {first_line}")
        finally:
            torch.set_rng_state(drawn)
    raise ValueError(reasons[0])


def to_steps(graph: fx.Graph) -> list[Step]:
    """The graph as JSON, each step referring to earlier ones by number.

    Raises:
        ValueError: it calls what a file may not name.
    """
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    return [
        {
            "op": node.op,
            "target": _target_name(node),
            "args": [encode(a, numbers.__getitem__) for a in node.args],
            "kwargs": {n: encode(a, numbers.__getitem__) for n, a in node.kwargs.items()},
        }
        for node in graph.nodes
    ]


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if (own := next((n for n, f in CHECKS.items() if f is node.target), None)) is not None:
        return own
    name = allowed.function_name(node.target)  # type: ignore[arg-type]
    if name is None:
        name = getattr(node.target, "__qualname__", repr(node.target))
        raise ValueError(f"{name} is not a function that a file may name")
    return name


def from_steps(steps: list[Step], model: nn.Module) -> fx.Graph:
    """The graph of the steps, every one of them checked against the allow-lists and `model`.

    Raises:
        ValueError: a step that is not allowed or does not fit the model.
    """
    graph, nodes = fx.Graph(), list[fx.Node]()

    def earlier(number: Any) -> fx.Node:
        if type(number) is not int or not 0 <= number < len(nodes):
            raise ValueError(f"step {len(nodes)} refers to step {number!r}")
        return nodes[number]

    for step in steps:
        op, target = step["op"], step["target"]
        kwargs = {_identifier(n): decode(v, earlier) for n, v in step["kwargs"].items()}
        if op == "placeholder":
            args = tuple(decode(v) for v in step["args"])
        else:
            args = tuple(decode(v, earlier) for v in step["args"])
        if kwargs and not str(op).startswith("call_"):
            raise ValueError(f"step {op!r} takes no keywords")
        checked = _target(op, target, args, model)
        nodes.append(graph.create_node(op, checked, args, kwargs))
        if (op == "output") != (len(nodes) == len(steps)):
            raise ValueError("the last step, and only the last, must be the output")
    if not nodes:
        raise ValueError("there are no steps")
    graph.lint()
    return graph


def _identifier(name: object) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{str(name)[:80]!r} is not the name of an argument")
    return name


def _target(op: str, target: object, args: tuple[Any, ...], model: nn.Module) -> Any:
    """What a step calls or reads, if a file may."""
    if not isinstance(target, str):
        raise ValueError(f"step target {target!r} is not a name")
    if op == "placeholder" and len(args) <= 1:
        stars = re.match(r"\*{0,2}", target).group()  # type: ignore[union-attr]
        return stars + _identifier(target[len(stars) :])
    if op == "output" and target == "output" and len(args) == 1:
        return target
    if op == "call_method":
        if target not in allowed.METHODS or not args:
            raise ValueError(f"method {target!r} is not allowed")
        return target
    if op == "call_function":
        return _function(target, args)
    if op in ("call_module", "get_attr"):
        found = find(model, target)
        if isinstance(found, nn.Module) == (op == "call_module"):
            return target
    raise ValueError(f"step {op!r} of {target[:80]!r} is not allowed")


def _function(name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
    if name in CHECKS:
        return CHECKS[name]
    if name not in allowed.FUNCTIONS:
        raise ValueError(f"function {name!r} is not allowed")
    # a literal from the list: an attribute named by a computed string could be any
    literal = len(args) == 2 and type(args[1]) is str and args[1] in allowed.ATTRIBUTES
    if name == "getattr" and not literal:
        raise ValueError(f"attribute {str(args[1:])[:80]} is not allowed")
    return allowed.FUNCTIONS[name]


def find(model: nn.Module, path: str) -> nn.Module | torch.Tensor:
    """The layer or tensor of that name, looked for only among layers, parameters and buffers.

    Raises:
        ValueError: there is none.
    """
    if not PATH.fullmatch(path):
        raise ValueError(f"{path[:80]!r} is not the name of a layer or tensor")
    return paths.find(model, path)


def network_class(graph: fx.Graph) -> type[nn.Module]:
    """A module class whose forward runs the graph on the layers of its instance.

    torch.fx writes the source of that forward from the checked graph: names that are identifiers,
    functions of the allow-list, and literals by their repr.
    """
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<forward rebuilt by sparseprune.load>", "exec"), scope)
    members = {
        "forward": scope["forward"],
        "__doc__": "A network rebuilt from a file by sparseprune.load.",
    }
    return type("Network", (nn.Module,), members)
