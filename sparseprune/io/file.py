"""The file: safetensors whose metadata holds a JSON manifest, with checksums over both."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import torch
from torch import Tensor

from sparseprune.files import replacing
from sparseprune.io.network import Manifest, Tensors
from sparseprune.masks import FORMAT as MASKS

FORMAT = "sparseprune.model"
VERSION = 1
WHOLE = "whole and written by sparseprune.save"
SAVE_AGAIN = "save the model again, or pass another file"


class Unreadable(ValueError):
    """Why a file cannot be read, and the way out."""

    def __init__(self, got: str, way_out: str = SAVE_AGAIN) -> None:
        super().__init__(got)
        self.got, self.way_out = got, way_out


def _order(tensor: Tensor) -> list[int]:
    """The dimensions as they lie in memory, outermost first."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))


def _stored(tensor: Tensor) -> tuple[Tensor, list[int] | None]:
    """A contiguous CPU tensor in memory of its own, and the order of dimensions if unusual.

    The order is kept because a kernel may sum a channels_last weight in another order.
    """
    tensor = tensor.detach().cpu()
    order = None
    if not tensor.is_contiguous():
        order = _order(tensor)
        tensor = tensor.permute(order)
    plain = tensor.contiguous()
    if plain.untyped_storage().nbytes() != plain.nbytes:
        plain = plain.clone()
    return plain, order


def _checksum(tensor: Tensor) -> int:
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(data)


def write(path: str | os.PathLike[str], manifest: Manifest, tensors: Tensors) -> None:
    """One file in one step: a crash leaves the old file, if any, as it was."""
    from safetensors.torch import save_file  # kernels run without it

    stored: Tensors = {}
    entries = {name: dict(entry) for name, entry in manifest["tensors"].items()}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain, order = _stored(tensor)
        if plain.numel() and plain.data_ptr() in seen:  # safetensors wants each byte once
            plain = plain.clone()
        seen.add(plain.data_ptr())
        stored[name] = plain
        entries[name] |= {
            "dtype": str(plain.dtype).removeprefix("torch."),
            "shape": list(plain.shape),
            "crc32": _checksum(plain),
        }
        if order is not None:
            entries[name]["order"] = order
    text = json.dumps({**manifest, "tensors": entries}, allow_nan=False)
    metadata = {FORMAT: str(VERSION), "manifest": text, "crc32": str(zlib.crc32(text.encode()))}
    with replacing(path) as temporary:
        save_file(stored, temporary, metadata)


def read(path: str | os.PathLike[str]) -> tuple[Manifest, Tensors]:
    """Manifest and tensors (on the CPU, in memory of their own), checked against each other.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: anything else that is wrong with it.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(path):
        raise FileNotFoundError(f"load: no file {os.fspath(path)!r}; save(model, path) makes one")
    if not os.path.isfile(path):
        raise Unreadable("a folder", "name the file in it")
    try:
        with safe_open(path, framework="pt") as file:
            manifest = _manifest(file.metadata() or {})
            entries = {n: e for n, e in manifest["tensors"].items() if "same" not in e}
            if entries.keys() != set(file.keys()):
                odd = sorted(entries.keys() ^ set(file.keys()))[:5]
                raise Unreadable(f"one whose tensors {odd} are missing or unexpected")
            # cloned: torch's memory is aligned, and does not change when the file does
            return manifest, {n: _restored(n, e, file.get_tensor(n)) for n, e in entries.items()}
    except SafetensorError as error:
        raise _foreign(path, error) from error


def _foreign(path: str | os.PathLike[str], error: Exception) -> Unreadable:
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        way_out = "load it with torch and then sparseprune.save the model"
        return Unreadable("a pickle of torch.save, which may run code and is not opened", way_out)
    return Unreadable(f"one that safetensors cannot read ({error})")


def _manifest(metadata: dict[str, str]) -> Manifest:
    if MASKS in metadata:
        raise Unreadable("masks", "read them with sparseprune.Masks.load")
    if FORMAT not in metadata:
        way_out = "build the model and load_state_dict(safetensors.torch.load_file(path))"
        raise Unreadable("a safetensors file of another program, without a manifest", way_out)
    version = metadata[FORMAT]
    if version != str(VERSION):
        newer = version.isdecimal() and len(version) < 10 and int(version) > VERSION
        way_out = "upgrade sparseprune" if newer else SAVE_AGAIN
        raise Unreadable(f"one of format version {version[:20]!r}, not {VERSION}", way_out)
    text = metadata.get("manifest", "")
    if metadata.get("crc32") != str(zlib.crc32(text.encode())):
        raise Unreadable("one whose manifest is damaged")
    manifest: Any = json.loads(text)
    tables = ("modules", "tensors")
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(table), dict)
        and all(isinstance(entry, dict) for entry in manifest[table].values())
        for table in tables
    ):
        raise Unreadable("one whose manifest lists no modules or tensors")
    return manifest


def _restored(name: str, entry: dict[str, Any], tensor: Tensor) -> Tensor:
    """The tensor as it was, checked against its entry."""
    found = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
    if found != (entry["dtype"], entry["shape"]):
        raise Unreadable(f"one whose tensor {name!r} is {found}, not as its manifest says")
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    if _checksum(tensor) != entry["crc32"]:
        raise Unreadable(f"one whose tensor {name!r} is damaged")
    if "order" not in entry:
        return tensor
    order = [int(d) for d in entry["order"]]
    return tensor.permute([order.index(d) for d in range(len(order))])
