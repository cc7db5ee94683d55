"""Similarity: of two filters that say the same, one goes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseprune.criteria.fpgm import distances
from sparseprune.criteria.interface import Stats, measured


@measured(granularity="unit")
def similarity(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """min_j ||w_i - w_j||_2 over the units j not yet removed, one by one. Higher is kept.

    At every turn the closest pair is found and the one of smaller norm goes (of equals the
    later), scored with their distance; its partner stays and is measured against the others. So
    one of a pair is low, never both, and scores rise in the order of removal. The last unit gets
    the highest score. (Srinivas & Babu, 2015, arXiv:1507.06149, without its output-weight factor.)
    Meaningful within a layer: use scope "local". [units], at least float32; units^2 memory.
    """
    distance = distances(weight)
    n = len(distance)
    score = distance.new_zeros(n)
    norms = torch.linalg.vector_norm(weight.to(distance.dtype).flatten(1), dim=1)
    distance.fill_diagonal_(math.inf)
    for _ in range(n - 1):
        i, j = divmod(int(distance.argmin()), n)  # the first of equals, so i < j
        gone = i if norms[i] < norms[j] else j
        score[gone] = distance[i, j]
        last = i + j - gone
        distance[gone], distance[:, gone] = math.inf, math.inf
    if n > 1:
        score[last] = torch.nextafter(score.max(), score.new_tensor(math.inf))
    return score
