"""Activations that clamp go into the kernel before them, where the values are at hand anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from sparseprune.copying import copy_with
from sparseprune.errors import summary
from sparseprune.formats.base import Clamp
from sparseprune.nn import LEAVES, SPARSE

ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Clamp]] = {
    nn.ReLU: lambda module: (0.0, None),
    nn.ReLU6: lambda module: (0.0, 6.0),
    nn.Hardtanh: lambda module: (float(module.min_val), float(module.max_val)),
}
"""Activation -> lowest and highest output."""


class LayerTracer(fx.Tracer):
    """Layers of this package are leaves, as those of torch are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, LEAVES)
        return own or super().is_leaf_module(m, module_qualified_name)


def fuse_activations(model: nn.Module) -> str | None:
    """Give sparse layers the clamp of the activation after them, which becomes an Identity.

    In place. A pair is fused where the layer's output goes to this activation alone, and neither
    is called twice or watched by hooks. The model keeps its class and its names.

    Returns:
        Why the model could not be traced, so that nothing was fused; None where it could.
    """
    if not any(type(m) in ACTIVATIONS for m in model.modules()):
        return None
    try:  # a copy, because tracing runs the forward and may leave its placeholders behind
        graph = LayerTracer().trace(copy_with(model, {}))
    except Exception as error:  # the model's own code
        return summary(error)
    modules = dict(model.named_modules(remove_duplicate=False))
    called = [node for node in graph.nodes if node.op == "call_module"]
    sparse = set(SPARSE.values())
    times = Counter(id(modules[node.target]) for node in called)
    for node in called:
        layer: Any = modules[node.target]
        users = list(node.users)
        if type(layer) not in sparse or len(users) != 1 or users[0].op != "call_module":
            continue
        after: Any = modules[users[0].target]
        pair = (layer, after)
        if type(after) not in ACTIVATIONS or any(times[id(m)] > 1 for m in pair):
            continue
        if any(m._forward_hooks or m._forward_pre_hooks for m in pair):
            continue
        layer.clamp = ACTIVATIONS[type(after)](after)
        model.set_submodule(users[0].target, nn.Identity().train(after.training))
    return None
