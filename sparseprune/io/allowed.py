"""What a file may name: layers, tensor functions, tensor methods. Anything else is refused.

The lists are rules over torch's own registries of what computes on tensors
(``torch.overrides.get_overridable_functions``), so that nothing which opens files, starts
processes or runs code can be in them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NOT_LAYERS = {"Module", "Container", "ParameterList", "ParameterDict", "RNNBase", "RNNCellBase"}


def _layers() -> dict[str, type[nn.Module]]:
    """Public classes of torch.nn, without those that are made from other layers' values."""
    found: dict[str, type[nn.Module]] = {}
    for name, kind in vars(nn).items():
        if not isinstance(kind, type) or not issubclass(kind, nn.Module) or name in _NOT_LAYERS:
            continue
        if kind.__module__.startswith("torch.nn.modules.") and not name.startswith("Lazy"):
            found[f"torch.nn.{name}"] = kind
    hidden = nn.modules.linear.NonDynamicallyQuantizableLinear  # inside MultiheadAttention
    found[f"torch.nn.{hidden.__name__}"] = hidden
    return found


LAYERS = _layers()
"""Name -> class of every dense layer that a file may hold."""
LAYER_NAMES = {kind: name for name, kind in LAYERS.items()}

# Packed formats behind raw pointers, and layouts whose indices torch does not check.
_UNSAFE_PREFIXES = (
    *("fbgemm_", "quantized_", "quantize_", "miopen_", "cudnn_", "mkldnn_", "to_mkldnn"),
    *("sparse_", "to_sparse", "resize", "set_", "storage", "untyped_storage", "typed_storage"),
    *("share_memory", "register_", "module_load", "sym_"),
)
# Take Python functions, end the graph, or reach memory and devices directly.
_UNSAFE_METHODS = {"apply_", "map_", "map2_", "backward", "numpy", "data_ptr", "const_data_ptr",
                   "record_stream", "pin_memory", "as_subclass", "new", "reinforce",
                   "requires_grad_", "retain_grad", "dim_order"}  # fmt: skip
_FACTORIES = ("arange", "zeros", "ones", "full", "eye", "linspace", "tril_indices", "triu_indices")
_OPERATORS = ("abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "iadd", "iand",
              "ifloordiv", "imatmul", "imod", "imul", "invert", "ior", "ipow", "isub", "itruediv",
              "ixor", "le", "lshift", "lt", "matmul", "mod", "mul", "ne", "neg", "not_", "or_",
              "pos", "pow", "rshift", "sub", "truediv", "xor")  # fmt: skip


def _public(name: str) -> bool:
    return not name.startswith(("_", *_UNSAFE_PREFIXES))


def _functions() -> dict[str, Callable[..., Any]]:
    known = torch.overrides.get_overridable_functions()
    overridable = {id(f) for space in known.values() for f in space}
    spaces: dict[str, ModuleType] = {
        "torch": torch, "torch.nn.functional": F, "torch.linalg": torch.linalg,
        "torch.fft": torch.fft, "torch.special": torch.special,
    }  # fmt: skip
    found: dict[str, Callable[..., Any]] = {}
    for space, module in spaces.items():
        for name, function in vars(module).items():
            plain = _public(name) and not isinstance(function, type)
            if plain and id(function) in overridable:
                found[f"{space}.{name}"] = function
    found |= {f"torch.{name}": getattr(torch, name) for name in (*_FACTORIES, "_assert")}
    found |= {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    found |= {f"math.{n}": f for n, f in vars(math).items() if _public(n) and callable(f)}
    found["getattr"] = getattr
    return found


FUNCTIONS = _functions()
"""Name -> function: what a step of a graph may call."""
_FUNCTION_NAMES = {id(function): name for name, function in reversed(FUNCTIONS.items())}

METHODS = {
    name
    for name in dir(torch.Tensor)
    if _public(name) and name not in _UNSAFE_METHODS and callable(getattr(torch.Tensor, name))
}
"""Methods of torch.Tensor that a step may call."""

ATTRIBUTES = {"shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "real", "imag",
              "data", "itemsize", "nbytes", "is_cuda", "is_cpu", "requires_grad",
              # of the named tuples that torch returns
              "values", "indices", "min", "max", "U", "S", "V", "Vh", "Q", "R", "L", "LU", "pivots",
              "eigenvalues", "eigenvectors", "solution", "sign", "logabsdet"}  # fmt: skip
"""What `getattr` may read from a tensor or a result."""


def function_name(function: Callable[..., Any]) -> str | None:
    """The name under which a file may call this function, or None."""
    return _FUNCTION_NAMES.get(id(function))
