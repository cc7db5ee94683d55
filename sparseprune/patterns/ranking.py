"""The lowest of many scores: exact counts, ties by position, streamed; and the floor of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sparseprune.errors import warn

FLOOR = 0.1
"""Ranked together, a weight keeps at least this share of the requested density (and one entry)."""

CHUNK = 1 << 20
"""Scores looked at in one go while ranking: bounds the memory for intermediate results."""


def lowest_together(
    scores: Mapping[str, Tensor],
    count: int,
    least: Mapping[str, int],
    sizes: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Marks the lowest entries of all `scores`, by one threshold, but empties no layer.

    scores: name -> one score per group of weights, any shape, higher = keep.
    count: weights to remove in all.
    least: name -> weights that it keeps at least (see `floor`). The others then give more; only
        if none can are fewer removed. A layer that the floor stopped is named in a warning.
    sizes: name -> weights in each group (int64), of the scores' shape; then the sum that comes
        nearest to `count` is removed. By default a group is one weight and the count is exact.
    """
    sizes = sizes or {}
    total = {n: int(sizes[n].sum()) if sizes else score.numel() for n, score in scores.items()}
    ranked = dict(scores)
    removed: dict[str, Tensor] = {}
    stopped: dict[str, int] = {}  # name -> weights left without the floor
    while ranked:
        own = [sizes[name] for name in ranked] if sizes else None
        most = sum(total[name] for name in ranked)
        marks = lowest(list(ranked.values()), min(max(count, 0), most), own)
        trial = dict(zip(ranked, marks, strict=True))
        kept = {n: total[n] - _weights(gone, sizes.get(n)) for n, gone in trial.items()}
        short = [name for name in ranked if kept[name] < least[name]]
        if not short:
            removed |= trial
            break
        for name in short:
            own = [sizes[name]] if sizes else None
            [removed[name]] = lowest([ranked.pop(name)], total[name] - least[name], own)
            stopped[name] = kept[name]
            count -= _weights(removed[name], sizes.get(name))
    if stopped:
        _warn(stopped, least)
    return {name: removed[name] for name in scores}


def floor(total: int, sparsity: float, largest: int = 1) -> int:
    """Weights that a layer of `total` keeps, ranked together at `sparsity`: at least one group.

    `FLOOR` of the requested density, rounded, and no less than the `largest` group.
    """
    return min(total, max(largest, round(FLOOR * (1 - sparsity) * total)))


def lowest(
    scores: Sequence[Tensor], count: int, sizes: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Marks the lowest entries of all `scores` together, `count` in all: a bool tensor for each.

    Among equals the earlier goes first: by place in the list, then by flat (row-major) index.
    With `sizes` (int64, positive, of the scores' shapes) an entry counts as that many, and the
    sum that comes nearest to `count` is taken; of two as near, the smaller.
    Streams over the scores: no sort, no copy of them all, at most one weight's worth in float32.
    """
    exact = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    marked = [torch.zeros(s.shape, dtype=torch.bool, device=s.device) for s in scores]
    if count == 0:
        return marked
    weighed: Sequence[Tensor | None] = sizes or [None] * len(scores)
    bound = _bound(scores, weighed, count, exact)
    spare = count
    for mark, score, size in zip(marked, scores, weighed, strict=True):
        # Compared in the common dtype: a bfloat16 comparison would round the bound.
        torch.lt(score.to(exact), bound, out=mark)
        spare -= _weights(mark, size)
    for mark, score, size in zip(marked, scores, weighed, strict=True):
        ties = score.to(exact) == bound
        tied = _weights(ties, size)
        mark |= ties if tied <= spare else _first(ties, spare, size)
        spare -= tied
        if spare <= 0:
            break
    return marked


def _weights(marked: Tensor, size: Tensor | None) -> int:
    """The weights in the marked groups; each is one weight without `size`."""
    return int(marked.count_nonzero()) if size is None else int(size[marked].sum())


def _first(ties: Tensor, spare: int, size: Tensor | None) -> Tensor:
    """Only the first entries of a bool tensor, up to the sum nearest to `spare`."""
    index = ties.reshape(-1).nonzero().reshape(-1)
    if size is None:
        index = index[:spare]
    else:
        own = size.reshape(-1)[index]
        after = own.cumsum(0) - spare
        index = index[after.abs() < (after - own).abs()]  # those that bring the sum nearer
    first = torch.zeros_like(ties).reshape(-1)
    first[index] = True
    return first.view(ties.shape)


def _bound(
    scores: Sequence[Tensor], sizes: Sequence[Tensor | None], count: int, dtype: torch.dtype
) -> float:
    """The smallest score up to which the sizes sum to `count`, by radix selection on its bits.

    Each round histograms the next 16 bits of the values that share the bits found so far. Unlike
    quickselect it does not slow down on ties, which an already pruned model is full of.
    """
    bits, whole = (64, torch.int64) if dtype == torch.float64 else (32, torch.int32)
    magnitude = 2 ** (bits - 1) - 1  # all bits but the sign
    found = 0
    for shift in range(bits - 16, -1, -16):
        first = shift == bits - 16
        histogram = torch.zeros(1 << 16, dtype=torch.int64)
        for part, size in _chunks(scores, sizes):
            key = part.to(dtype).view(whole)
            key = torch.where(key < 0, key ^ magnitude, key)  # now ordered like the floats
            if not first:
                here = (key >> (shift + 16)) == found
                key, size = key[here], None if size is None else size[here]
            digit = (key >> shift) + (1 << 15) if first else (key >> shift) & 0xFFFF
            # sums of sizes come as float64: whole numbers below 2^53 stay exact
            histogram += digit.bincount(size, minlength=1 << 16).to("cpu", torch.int64)
        below = histogram.cumsum(0)
        digit_found = int(torch.searchsorted(below, count))
        count -= int(below[digit_found] - histogram[digit_found])
        found = digit_found - (1 << 15) if first else (found << 16) | digit_found
    key_found = found ^ magnitude if found < 0 else found
    return torch.tensor(key_found, dtype=whole).view(dtype).item()


def _chunks(
    scores: Sequence[Tensor], sizes: Sequence[Tensor | None]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Flat views of at most `CHUNK` scores, with their sizes."""
    for score, size in zip(scores, sizes, strict=True):
        parts = torch.split(score.detach().reshape(-1), CHUNK)
        own = [None] * len(parts) if size is None else torch.split(size.reshape(-1), CHUNK)
        yield from zip(parts, own, strict=True)


def _warn(stopped: Mapping[str, int], least: Mapping[str, int]) -> None:
    listed = ", ".join(f"{name} ({kept} -> {least[name]})" for name, kept in stopped.items())
    warn(
        f"prune: the global ranking would have left too little of {listed} (weights kept); "
        f"each layer keeps at least {FLOOR:.0%} of the requested density. "
        "Use scope='local', a sparsity per layer, or ignore to choose otherwise"
    )
