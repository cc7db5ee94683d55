"""Which rows of a csr weight share columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Worth of pairs, by the columns that they share and those of the one row and of the other."""


def pairs(kept: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Pairs [segments, rows // 2, 2] of the rows of each segment, of kept [segments, rows, block].

    Greedy: the row with the most columns takes the one with which it scores most; they are stored
    in this order. The last of an odd number of rows is in no pair.

    Returns:
        The pairs, and how many columns each of them shares [segments, rows // 2].
    """
    count = kept.sum(-1)
    order = count.sort(dim=-1, descending=True, stable=True).indices
    count = count.gather(1, order)
    ordered = kept.gather(1, order[..., None].expand_as(kept)).float()
    shared = ordered @ ordered.transpose(1, 2)  # whole numbers, exact
    scores = score(shared, count[:, :, None], count[:, None, :])
    free = torch.ones_like(count, dtype=torch.bool)
    at = torch.arange(len(kept), device=kept.device)
    found = []
    for _ in range(kept.shape[1] // 2):
        one = free.byte().argmax(-1)
        free[at, one] = False
        two = scores[at, one].masked_fill(~free, -torch.inf).argmax(-1)
        free[at, two] = False
        found.append(torch.stack([one, two], -1))
    empty = count.new_zeros(len(kept), 0, 2)
    places = torch.stack(found, 1) if found else empty
    both = shared[at[:, None], places[..., 0], places[..., 1]].long()
    return order.gather(1, places.flatten(1)).view_as(places), both
