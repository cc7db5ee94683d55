"""Statistics over the ranks of torch.distributed: all ranks see the same sums, or all fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Sums: TypeAlias = dict[tuple[str, str], Tensor]


def several() -> bool:
    """Whether there are other ranks to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def together() -> Iterator[None]:
    """If any rank fails inside, all raise at the end: none is left waiting in a collective."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if several():
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, None if error is None else str(error))
        first = next((rank for rank, text in enumerate(failures) if text is not None), None)
        if error is None and first is not None:
            raise RuntimeError(f"rank {first} failed: {failures[first]}")
    if error is not None:
        raise error


def sum_over_ranks(sums: Sums, device: torch.device) -> Sums:
    """Every sum over all ranks; a layer that some rank never ran counts zero there."""
    if not several():
        return sums
    forms: list[Any] = [None] * dist.get_world_size()
    mine = {key: (tuple(value.shape), value.dtype) for key, value in sums.items()}
    dist.all_gather_object(forms, mine)
    total: Sums = {}
    for key, (shape, dtype) in sorted({k: v for part in forms for k, v in part.items()}.items()):
        value = sums.get(key)
        total[key] = (
            torch.zeros(shape, dtype=dtype, device=device)
            if value is None
            else value.to(device, copy=True)
        )
        dist.all_reduce(total[key])
    return total


def rows_of_ranks(rows: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The rows of all ranks, in rank order, on the CPU."""
    if not several():
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, {name: [t.cpu() for t in part] for name, part in rows.items()})
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [t for part in parts for t in part.get(name, [])] for name in names}
