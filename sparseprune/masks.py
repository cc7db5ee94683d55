"""Masks: which weights are kept. Made by `prune`, kept through training, saved and loaded."""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseprune.errors import bad, bad_type, suggest
from sparseprune.files import write_atomically
from sparseprune.selection import Ignore, plain_weight, prunable_modules

FORMAT = "sparseprune.masks.v1"


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True = kept.

    A tied weight has one mask, under its first name. A mask follows its parameter to another
    device when it is next applied.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise bad_type("Masks", f"mask {name!r}", "a bool tensor", got, "pass mask != 0")
        self._masks = dict(masks)
        self._held: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        same = list(self) == list(other)
        return same and all(torch.equal(self[n].cpu(), other[n].cpu()) for n in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        total = sum(mask.numel() for mask in self.values())
        return f"Masks({len(self)} tensors, {total:,} weights, sparsity {self.sparsity():.4f})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles carry the masks; the training they are attached to stays here.
        return Masks, ({name: mask.clone() for name, mask in self.items()},)

    def sparsity(self) -> float:
        """zeros / total over all masked weights, in [0, 1]; 0 for no masks."""
        kept, total = self._counts()
        return (total - kept) / total if total else 0.0

    def compression(self) -> float:
        """total / kept over all masked weights; infinite if nothing is kept."""
        kept, total = self._counts()
        return total / kept if kept else math.inf if total else 1.0

    def _counts(self) -> tuple[int, int]:
        kept = sum(int(mask.count_nonzero()) for mask in self.values())
        return kept, sum(mask.numel() for mask in self.values())

    def summary(self) -> str:
        """A table: name, shape, weights kept, total and sparsity of each layer, and of all."""
        from rich import box  # where something is shown
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("layer", box=box.SIMPLE_HEAD)
        for title in ("shape", "kept", "total", "sparsity"):
            table.add_column(title, justify="right", no_wrap=True)

        def row(name: str, shape: str, kept: int, total: int) -> None:
            share = f"{(total - kept) / total if total else 0:.2%}"
            table.add_row(Text(name), shape, f"{kept:,}", f"{total:,}", share)

        for name, mask in self.items():
            row(name, " x ".join(map(str, mask.shape)), int(mask.count_nonzero()), mask.numel())
        table.add_section()
        row("total", "", *self._counts())
        text = io.StringIO()
        Console(file=text, width=80 + max(map(len, self), default=0)).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())

    @classmethod
    def from_model(cls, model: nn.Module, ignore: Ignore = ()) -> Masks:
        """The masks of the exact zeros of every prunable weight (see `prunable_weights`).

        Weights pruned by `torch.nn.utils.prune` are read from `weight_orig` and `weight_mask`,
        and named as they will be after `prune.remove`. What Torch-Pruning leaves is a smaller dense
        network: its masks keep everything, there is nothing left to mask.
        """
        masks: dict[str, Tensor] = {}
        for name, module in prunable_modules(model, ignore, "Masks.from_model").items():
            mask = getattr(module, "weight_mask", None)
            if mask is None or "weight_orig" not in module._parameters:
                masks[name] = plain_weight(name, module, "Masks.from_model").detach() != 0
            else:
                masks[name] = (module.get_parameter("weight_orig").detach() != 0) & (mask != 0)
        return cls(masks)

    def apply_(self, model: nn.Module) -> None:
        """Sets the masked weights of `model` to exact zero, in place.

        Names and shapes are checked first: on an error the model is as it was.
        """
        self._zero(self._parameters("apply_", model))

    def attach(self, model: nn.Module, optimizer: Optimizer) -> Masks:
        """Keeps masked weights at exact zero through training, until `detach()`.

        Applies the masks now, after every step of `optimizer` (to the weights and to all optimizer
        state of the weight's shape: momentum would revive them) and after `load_state_dict`.
        Returns self, so that `with masks.attach(model, optimizer):` detaches at the end.
        A copy or pickle of the model is not attached. A frozen weight need not be in `optimizer`.
        A model sharded by FSDP2 (`fully_shard`) after it was pruned is understood.
        """
        if self._handles:
            raise bad("attach", "masks", "attached once", "a second call", "call detach() first")
        held = self._parameters("attach", model)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in held.items():
            if parameter.requires_grad and id(parameter) not in owned:
                way_out = f"build the optimizer from this model, with {name!r} in it"
                raise bad("attach", "optimizer", "over all masked weights", f"no {name!r}", way_out)
        self._held = held
        self._zero(held, optimizer)

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._zero(self._held, optimizer)

        self._handles = [
            optimizer.register_step_post_hook(after_step),
            model.register_load_state_dict_post_hook(_AfterLoad(self)),  # type: ignore[no-untyped-call]
        ]
        return self

    def detach(self) -> None:
        """Ends `attach`; does nothing if not attached."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._held = [], {}

    def __enter__(self) -> Masks:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _parameters(self, operation: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the masks name, or an error: one is missing or does not fit."""
        known = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.items():
            if name not in known:
                expected = "of parameters that the model has"
                raise bad(operation, "masks", expected, repr(name), suggest(name, known))
            if known[name].shape != mask.shape:
                expected = f"of the parameter's shape {tuple(known[name].shape)}"
                way_out = "use the model that the masks were made for"
                raise bad(operation, f"mask {name!r}", expected, tuple(mask.shape), way_out)
            if known[name].is_meta:
                way_out = "load the model's values first"
                raise bad(operation, f"parameter {name!r}", "in memory", "a meta tensor", way_out)
        return {name: known[name] for name in self}

    @torch.no_grad()
    def _zero(self, parameters: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Zeroes the masked entries, also in the optimizer's state. Never multiplies: no -0.0."""
        for name, parameter in parameters.items():
            self._masks[name] = self._masks[name].to(parameter.device)
            dropped = _sharded(~self._masks[name], parameter)
            parameter.masked_fill_(dropped, 0)
            # get(), as the state is a defaultdict and an empty entry would change the next step
            state = optimizer.state.get(parameter, {}) if optimizer else {}
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(dropped, 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file: 1 bit per weight, shapes and checksums in its metadata.

        Atomic: a crash leaves the old file, if any, as it was.
        """
        from safetensors.numpy import save as to_safetensors

        bits = {name: np.packbits(mask.cpu().numpy()) for name, mask in self.items()}
        header = {
            name: {"shape": list(mask.shape), "crc32": _checksum(name, mask.shape, bits[name])}
            for name, mask in self.items()
        }
        write_atomically(path, to_safetensors(bits, {FORMAT: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Reads what `save` wrote, onto the CPU. ValueError for a damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads(file.metadata()[FORMAT])
                return cls({n: _unpack(n, header[n], file.get_tensor(n)) for n in header})
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            got = f"one that cannot be read ({type(error).__name__}: {error})"
            way_out = "save the masks again, or pass another file"
            raise bad(
                "Masks.load", f"file {os.fspath(path)!r}", "whole, by Masks.save", got, way_out
            ) from error


def _sharded(mask: Tensor, parameter: Tensor) -> Tensor:
    """The mask as FSDP2 shards its parameter, without communication; else as it is."""
    if not hasattr(parameter, "full_tensor"):
        return mask
    from torch.distributed.tensor import distribute_tensor  # a second to import

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(mask, mesh, placements, src_data_rank=None)


class _AfterLoad:
    """The model's hook: masks again after load_state_dict, which may bring dense weights."""

    def __init__(self, masks: Masks | None) -> None:
        self.masks = masks

    def __call__(self, model: nn.Module, incompatible: object) -> None:
        if self.masks is not None:
            # load_state_dict(assign=True) replaces the parameters
            self.masks._held = self.masks._parameters("load_state_dict", model)
            self.masks._zero(self.masks._held)

    def __reduce__(self) -> tuple[Any, ...]:
        return _AfterLoad, (None,)  # a copied or pickled model is not attached


def _checksum(name: str, shape: torch.Size, bits: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(f"{name}{list(shape)}".encode() + bits.tobytes())


def _unpack(name: str, entry: dict[str, Any], bits: np.ndarray[Any, Any]) -> Tensor:
    """Packed bits -> bool tensor of the recorded shape, checked against the recorded checksum."""
    shape = torch.Size(entry["shape"])
    size = math.prod(shape)
    if bits.size != (size + 7) // 8 or _checksum(name, shape, bits) != entry["crc32"]:
        raise ValueError(f"the bits of {name!r} are damaged")
    return torch.from_numpy(np.unpackbits(bits, count=size).view(np.bool_)).reshape(shape)
