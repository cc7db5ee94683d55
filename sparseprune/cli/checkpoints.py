"""Weights in safetensors files: into a known network, or pruned with nothing but their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from sparseprune.errors import bad

LAYERS = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
"""Dimensions of a weight -> the layer that it is taken for."""
EMBEDDING = re.compile(r"(^|[._])(emb\w*|\w*embed\w*|wte|wpe|shared)\.weight$")
"""Names of tables that look like linear layers and are none."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills a model from a file of its state_dict; tied tensors may be there once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one of another network.
    """
    _check_there(path)
    try:
        load_model(model, path)
    except (SafetensorError, RuntimeError) as error:
        got = " ".join(str(error).split())[:300]
        way_out = "pass the file of this network's state_dict"
        raise bad("load_weights", f"file {str(path)!r}", "whole and of this network", got,
                  way_out) from error  # fmt: skip


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the state_dict of a model, tied tensors once."""
    save_model(model, str(path))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """All tensors of a file, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file.
    """
    _check_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        way_out = "convert it with safetensors.torch.save_file(model.state_dict(), path)"
        raise bad("read", f"file {str(path)!r}", "in safetensors format", str(error),
                  way_out) from error  # fmt: skip


def skeleton(tensors: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """A module with a layer for every weight that can be pruned, and the names left out.

    The layers share the given tensors, so pruning it prunes them. Which layer a weight belongs to
    is guessed from its dimensions; names of embeddings are left out.
    """
    root, left_out = nn.Module(), []
    for name, tensor in tensors.items():
        prunable = name.endswith(".weight") and tensor.dim() in LAYERS
        if not prunable or not tensor.is_floating_point() or EMBEDDING.search(name):
            left_out += [name] if tensor.dim() > 1 else []
            continue
        parent, (*path, last) = root, name.removesuffix(".weight").split(".")
        for step in path:
            if step not in parent._modules:
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        kind = LAYERS[tensor.dim()]
        layer = kind(1, 1, bias=False) if kind is nn.Linear else kind(1, 1, 1, bias=False)
        layer.weight = nn.Parameter(tensor, requires_grad=False)
        parent.add_module(last, layer)
    return root, left_out


def write(tensors: dict[str, Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    """Writes tensors and metadata as `read` gave them."""
    save_file(tensors, path, metadata)


def check_folders(paths: Iterable[Path | None]) -> None:
    """FileNotFoundError before long work, if a file to write has no folder to be in."""
    for path in paths:
        if path is not None and not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name!r} to")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
