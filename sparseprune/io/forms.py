"""The structure of an output as JSON and back: lists, tuples, dicts, and output classes of models.

An output class, such as those of transformers, is a kind of dict that its package has registered
with torch. A file names it and its keys; only one that is registered already is taken, so that a
file loads no code.
"""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from sparseprune.io.values import MAX_DEPTH

LEAF = "leaf"
PLAIN: dict[str, type] = {"list": list, "tuple": tuple, "dict": dict}


def encode(form: pytree.TreeSpec) -> Any:
    """JSON for a structure.

    Raises:
        ValueError: it holds a container that a file may not name.
    """
    if form.is_leaf():
        return LEAF
    name = next((n for n, kind in PLAIN.items() if kind is form.type), None)
    if name is None:
        if not _is_output_class(form.type):
            raise ValueError(f"its output holds a {form.type.__name__}")
        name = _name(form.type)
    keys = None if form.type in (list, tuple) else _keys(form.context)
    return {"kind": name, "keys": keys, "parts": [encode(part) for part in form.children()]}


def decode(data: Any, depth: int = 0) -> pytree.TreeSpec:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: anything that :func:`encode` does not write, or a class that is not here.
    """
    if data == LEAF:
        return pytree.tree_structure(0)
    if depth > MAX_DEPTH:
        raise ValueError(f"outputs nested more than {MAX_DEPTH} deep")
    if not isinstance(data, dict) or data.keys() != {"kind", "keys", "parts"}:
        raise ValueError(f"an output {str(data)[:80]!r}")
    name, parts = data["kind"], [decode(part, depth + 1) for part in data["parts"]]
    if name in ("list", "tuple"):
        return pytree.TreeSpec(PLAIN[name], None, parts)
    keys = _keys(data["keys"])
    if len(keys) != len(parts):
        raise ValueError(f"an output with {len(parts)} values for {keys}")
    kind = dict if name == "dict" else _registered(name)
    return pytree.TreeSpec(kind, keys, parts)


def _keys(keys: Any) -> list[str]:
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise ValueError(f"an output with the keys {str(keys)[:80]}")
    return keys


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_output_class(kind: Any) -> bool:
    """A subclass of dict whose context, in torch's registry, is its keys."""
    return isinstance(kind, type) and issubclass(kind, dict) and kind.__module__ != "collections"


def _registered(name: Any) -> type:
    for kind in pytree.SUPPORTED_NODES:
        if _is_output_class(kind) and kind is not dict and _name(kind) == name:
            return kind
    raise ValueError(f"the class {str(name)[:80]!r} of its output is not imported here")
