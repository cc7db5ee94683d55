"""Unstructured: any weight may be zero."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 0.1
"""Ranked together, a weight keeps at least this share of the requested density (and one entry)."""

CHUNK = 1 << 20
"""Scores looked at in one go while ranking: bounds the memory for intermediate results."""


@dataclass(frozen=True)
class Unstructured:
    """Each weight stands alone: the lowest scores go, ties by position."""

    name: str = "unstructured"

    def mask(self, score: Tensor, sparsity: float) -> Tensor:
        """Removes exactly round(sparsity * n) of the n entries of `score` (any shape)."""
        return ~lowest([score], round(sparsity * score.numel()))[0]

    def masks(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Removes exactly round(sparsity * n) of all n entries, by one threshold.

        No weight is emptied: each keeps at least `FLOOR` of the requested density, and one entry.
        The others then give more; only if none can (fewer survivors than weights) are fewer
        removed. A weight that the floor stopped is named in a warning.
        """
        least = {
            name: min(score.numel(), max(1, round(FLOOR * (1 - sparsity) * score.numel())))
            for name, score in scores.items()
        }
        budget = round(sparsity * sum(score.numel() for score in scores.values()))
        ranked = dict(scores)
        removed: dict[str, Tensor] = {}
        stopped: dict[str, int] = {}  # name -> survivors without the floor
        while ranked:
            size = sum(score.numel() for score in ranked.values())
            trial = dict(zip(ranked, lowest(list(ranked.values()), min(budget, size)), strict=True))
            kept = {name: gone.numel() - int(gone.count_nonzero()) for name, gone in trial.items()}
            short = [name for name in ranked if kept[name] < least[name]]
            if not short:
                removed |= trial
                break
            for name in short:
                score = ranked.pop(name)
                stopped[name] = kept[name]
                removed[name] = lowest([score], score.numel() - least[name])[0]
                budget -= score.numel() - least[name]
        if stopped:
            _warn(stopped, least)
        return {name: ~removed[name] for name in scores}


def lowest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Marks the `count` lowest entries of all `scores` together: one bool tensor for each.

    Among equals the earlier goes first: by place in the list, then by flat (row-major) index.
    Streams over the scores: no sort, no copy of them all, at most one weight's worth in float32.
    """
    exact = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    marked = [torch.zeros(s.shape, dtype=torch.bool, device=s.device) for s in scores]
    if count == 0:
        return marked
    bound = _kth_smallest(scores, count, exact)
    for mark, score in zip(marked, scores, strict=True):
        # Compared in the common dtype: a bfloat16 comparison would round the bound.
        torch.lt(score.to(exact), bound, out=mark)
    spare = count - sum(int(mark.count_nonzero()) for mark in marked)
    for mark, score in zip(marked, scores, strict=True):
        if spare == 0:
            break
        ties = (score.to(exact) == bound).reshape(-1)
        if int(ties.count_nonzero()) > spare:
            ties = _first(ties, spare)
        mark |= ties.view(mark.shape)
        spare -= int(ties.count_nonzero())
    return marked


def _kth_smallest(scores: Sequence[Tensor], count: int, dtype: torch.dtype) -> float:
    """The `count`-th smallest value (from 1), by radix selection on the bits of the floats.

    Each round histograms the next 16 bits of the values that share the bits found so far. Unlike
    quickselect it does not slow down on ties, which an already pruned model is full of.
    """
    bits, whole = (64, torch.int64) if dtype == torch.float64 else (32, torch.int32)
    magnitude = 2 ** (bits - 1) - 1  # all bits but the sign
    found = 0
    for shift in range(bits - 16, -1, -16):
        first = shift == bits - 16
        histogram = torch.zeros(1 << 16, dtype=torch.int64)
        for part in (part for s in scores for part in torch.split(s.detach().reshape(-1), CHUNK)):
            key = part.to(dtype).view(whole)
            key = torch.where(key < 0, key ^ magnitude, key)  # now ordered like the floats
            if not first:
                key = key[(key >> (shift + 16)) == found]
            digit = (key >> shift) + (1 << 15) if first else (key >> shift) & 0xFFFF
            histogram += digit.bincount(minlength=1 << 16).cpu()
        below = histogram.cumsum(0)
        digit_found = int(torch.searchsorted(below, count))
        count -= int(below[digit_found] - histogram[digit_found])
        found = digit_found - (1 << 15) if first else (found << 16) | digit_found
    key_found = found ^ magnitude if found < 0 else found
    return torch.tensor(key_found, dtype=whole).view(dtype).item()


def _first(flags: Tensor, count: int) -> Tensor:
    """Only the first `count` True entries of a bool vector."""
    first = torch.zeros_like(flags)
    first[flags.nonzero().reshape(-1)[:count]] = True
    return first


def _warn(stopped: Mapping[str, int], least: Mapping[str, int]) -> None:
    listed = ", ".join(f"{name} ({kept} -> {least[name]})" for name, kept in stopped.items())
    warnings.warn(
        f"prune: the global ranking would have left too little of {listed} (weights kept); "
        f"each layer keeps at least {FLOOR:.0%} of the requested density. "
        "Use scope='local', a sparsity per layer, or ignore to choose otherwise",
        stacklevel=4,
    )
