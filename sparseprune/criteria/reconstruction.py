"""Channel reconstruction error: what a layer's output loses with an input channel."""

from __future__ import annotations

from torch import Tensor

from sparseprune.criteria.interface import Stats, measured
from sparseprune.criteria.statistics.inputs import InputGram


@measured(InputGram, granularity="channel")
def reconstruction(weight: Tensor, stats: Stats) -> Tensor:
    """||z - z_c|| = sqrt(E_n ||W_c x_nc||^2), z_c the layer's output without input channel c.

    Higher is kept. E over samples and output positions, the norm over outputs; the bias cancels.
    = sqrt(sum_o w_oc^T (X_c^T X_c / n) w_oc). (The single-channel error that He et al., 2017,
    arXiv:1707.06168, minimise over sets.) Needs data, no loss; one score per input channel, [in],
    at least float32: use it with pattern "channel".
    """
    gram = stats["input_gram"]  # [groups, k, k], k = in / groups * kernel
    groups, channels = gram.shape[0], weight.shape[1]
    kernel = weight[0, 0].numel()
    w = weight.to(gram.dtype).reshape(groups, -1, channels, kernel)
    blocks = gram.reshape(groups, channels, kernel, channels, kernel)
    blocks = blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)  # [groups, channels, kernel, kernel]
    energy = (w.movedim(2, 1) @ blocks * w.movedim(2, 1)).sum((2, 3))
    return energy.clamp_min(0).sqrt().reshape(-1)
