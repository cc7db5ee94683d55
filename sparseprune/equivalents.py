"""Pruned modules that torch does not see as layers, as the layers that compute the same.

Attention of torch keeps its weights as bare parameters; users write layers of their own around
``F.linear(x, self.weight * self.mask)``. Both become ordinary layers, which ``convert`` can pack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseprune.copying import copy_with
from sparseprune.nn.attention import MultiheadAttention, linear_of
from sparseprune.program.mutation import changes

Layer: TypeAlias = Any
"""nn.Linear or a convolution."""


def equivalents(model: nn.Module, least: float) -> dict[nn.Module, nn.Module]:
    """Module -> what takes its place, for those of whose weights a share of `least` is zero.

    Args:
        model: in eval mode; not changed. What it computes in training mode may differ.
        least: of the zeros in a weight.
    """
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        made = equivalent(module)
        if made is not None and any(_zeros(p) >= least for p in made.parameters() if p.dim() > 1):
            trained = any(p.requires_grad for p in module.parameters())
            found[module] = made.eval().requires_grad_(trained)
    return found


def _zeros(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight)) / max(1, weight.numel())


def equivalent(module: nn.Module) -> nn.Module | None:
    """The layer that computes in eval mode what this module does; None if it is one, or unknown."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.MultiheadAttention:
        refused = MultiheadAttention.refuses(module) is not None
        return None if refused else MultiheadAttention.from_dense(module)
    kind, of_torch = type(module), type(module).__module__.startswith("torch.nn.")
    if of_torch or module._modules or all(p.dim() < 2 for p in module.parameters()):
        return None
    make = NAMED.get(f"{kind.__module__}.{kind.__qualname__}", _by_forward)
    try:
        layer = make(module)
        return layer if layer is not None and _agree(module, layer) else None
    except Exception:  # the module's own code, or a call that is not what a layer does
        return None


def _agree(module: nn.Module, layer: Layer) -> bool:
    """Whether both give the same for some input."""
    kernel = () if isinstance(layer, nn.Linear) else layer.kernel_size
    dilation = () if isinstance(layer, nn.Linear) else layer.dilation
    sizes = [d * (k - 1) + 3 for k, d in zip(kernel, dilation, strict=True)]
    x = torch.linspace(-2, 2, layer.weight.shape[1], device=layer.weight.device)
    if kernel:
        x = x.repeat(layer.groups).view(-1, *(1 for _ in sizes)).expand(-1, *sizes).sin()
    x = x.unsqueeze(0).to(layer.weight.dtype)
    with torch.no_grad():
        return torch.allclose(module.forward(x), layer(x), rtol=1e-3, atol=1e-5)


def _by_forward(module: nn.Module) -> Layer | None:
    """The layer that a forward consists of: one call, its weights made of own tensors alone."""
    graph = fx.Tracer().trace(copy_with(module, {}))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    call: Any = next(iter(reversed(graph.nodes))).args[0]
    if any(changes(node, {}) or not (node.users or node.op == "output") for node in graph.nodes):
        return None  # it does something besides
    if call.target not in CALLS or inputs != [call.args[0]] or len(inputs[0].users) > 1:
        return None
    args, kwargs = _constants(module, graph, call)
    return CALLS[call.target](*args, **kwargs)


def _constants(module: nn.Module, graph: fx.Graph, call: fx.Node) -> Any:
    """The arguments of a call, but for its first, as values."""
    values, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op != "placeholder" and node is not call and node.op != "output":
            copied[node] = values.node_copy(node, copied.__getitem__)
    values.output(fx.map_arg((call.args[1:], dict(call.kwargs)), copied.__getitem__))
    with torch.no_grad():
        return fx.GraphModule(module, values)()


def _conv(kind: Any) -> Callable[..., Layer]:
    def made(
        weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Layer:  # fmt: skip
        layer = kind(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride,
                     padding, dilation, groups, bias is not None, device="meta")  # fmt: skip
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    return made


CALLS: dict[Any, Callable[..., Layer]] = {
    F.linear: linear_of,
    F.conv1d: _conv(nn.Conv1d),
    F.conv2d: _conv(nn.Conv2d),
    F.conv3d: _conv(nn.Conv3d),
}
"""Function -> the layer of its arguments behind the first."""
NAMED: dict[str, Callable[[Any], Layer | None]] = {
    "transformers.pytorch_utils.Conv1D": lambda m: linear_of(m.weight.t(), m.bias),
}
"""Full name of a class of others -> the layer that it is."""
