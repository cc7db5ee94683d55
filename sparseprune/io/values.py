"""Literals of a network as JSON and back: what JSON lacks becomes a dict with one telling key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sparseprune.io import allowed

MAX_DEPTH = 20
"""Of lists in lists. No network needs more; deeper ones would overflow Python's parser."""

NAMED: dict[str, dict[str, Any]] = {
    "dtype": {n: v for n, v in vars(torch).items() if isinstance(v, torch.dtype)},
    "memory_format": {n: v for n, v in vars(torch).items() if isinstance(v, torch.memory_format)},
    "layout": {"strided": torch.strided},
}
"""Constants of torch that are written by name."""

Reference = Callable[[Any], Any]


def _none(value: Any) -> Any:
    raise ValueError(f"a reference to another step, {value!r}, where a literal belongs")


def encode(value: Any, reference: Reference = _none) -> Any:
    """JSON for a literal; `reference` gives the number of a torch.fx node.

    Raises:
        ValueError: something that is not data.
    """
    if value is None or (isinstance(value, (bool, int, str)) and type(value) in (bool, int, str)):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is complex:
        return {"complex": [encode(value.real), encode(value.imag)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.fx.Node):
        return {"step": reference(value)}
    if isinstance(value, slice):
        return {"slice": [encode(v, reference) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [encode(v, reference) for v in value]}
    if isinstance(value, list):
        return [encode(v, reference) for v in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v, reference)] for k, v in value.items()]}
    return _encode_named(value)


def _encode_named(value: Any) -> Any:
    for tag, table in NAMED.items():
        for name, known in table.items():
            if value is known:
                return {tag: name}
    if isinstance(value, torch.device):
        return {"device": "cpu"}  # where a loaded network is
    raise ValueError(f"a {type(value).__name__} is not plain data")


def encode_setting(value: Any) -> Any:
    """As :func:`encode`, for an attribute of a layer, which may be a function (an activation)."""
    name = allowed.function_name(value) if callable(value) else None
    return encode(value) if name is None else {"function": name}


def decode_setting(data: Any) -> Any:
    """The inverse of :func:`encode_setting`."""
    if isinstance(data, dict) and data.keys() == {"function"}:
        if data["function"] not in allowed.FUNCTIONS:
            raise ValueError(f"function {data['function']!r} is not allowed")
        return allowed.FUNCTIONS[data["function"]]
    return decode(data)


def decode(data: Any, reference: Reference = _none, depth: int = 0) -> Any:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: anything that :func:`encode` does not write.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values nested more than {MAX_DEPTH} deep")

    def inner(values: Any) -> list[Any]:
        return [decode(v, reference, depth + 1) for v in values]

    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return inner(data)
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError(f"value {str(data)[:80]!r} is not one that save writes")
    ((tag, content),) = data.items()
    if tag == "step":
        return reference(content)
    if tag == "tuple":
        return tuple(inner(content))
    if tag == "slice" and len(content) == 3:
        return slice(*inner(content))
    if tag == "dict":
        return {decode(k, depth=depth + 1): decode(v, reference, depth + 1) for k, v in content}
    return _decode_named(tag, content)


def _decode_named(tag: str, content: Any) -> Any:
    if tag == "size":
        return torch.Size([_integer(v) for v in content])
    if tag == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if tag == "complex":
        real, imaginary = (float(decode(v)) for v in content)
        return complex(real, imaginary)
    if tag == "ellipsis":
        return ...
    if tag == "device" and content == "cpu":
        return torch.device("cpu")
    if tag in NAMED and isinstance(content, str) and content in NAMED[tag]:
        return NAMED[tag][content]
    raise ValueError(f"value {tag!r}: {str(content)[:80]!r} is not one that save writes")


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{str(value)[:80]!r} is not a whole number")
    return value
