"""Layers and tensors of a network by their path."""

from __future__ import annotations

from torch import Tensor, nn


def find(root: nn.Module, path: str) -> nn.Module | Tensor:
    """What has this path, looked for only among layers, parameters and buffers; "" is the root.

    No attribute is read and no code of the network runs, so that a path may come from a file.

    Raises:
        ValueError: there is none.
    """
    found: nn.Module | Tensor | None = root
    for name in path.split(".") if path else ():
        if not isinstance(found, nn.Module):
            break
        tables = (found._modules, found._parameters, found._buffers)
        found = next((t[name] for t in tables if t.get(name) is not None), None)  # type: ignore[index]
    else:
        if found is not None:
            return found
    raise ValueError(f"there is no layer or tensor {path[:80]!r}")


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The layer of this path.

    Raises:
        ValueError: there is none.
    """
    found = find(root, path)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{path[:80]!r} is a tensor, not a layer")
    return found
