"""Sensitivity-driven regularisation: weights that the outputs do not feel decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.selection import Ignore
from sparseprune.training.decay import OutputDecay
from sparseprune.training.method import check_strength


class SensitivityDecay(OutputDecay):
    """w <- w - eta * dL/dw - strength * w * [1 - S]_+, S = sum_k alpha_k |dy_k/dw|.

    (Tartaglione et al., 2018, Learning sparse neural networks via sensitivity-driven
    regularization, arXiv:1810.11764.) y_k: output k of the model, its mean over the samples of a
    batch; eta * dL/dw stands for the step of any optimizer. alpha_k = 1 / C by default, the
    paper's unspecific sensitivity; its specific one, alpha = the one-hot target of a single
    sample, is not offered.

    One backward pass per output in every forward pass: C + 1 instead of 1 in a training step.
    """

    def __init__(
        self, strength: float, alpha: Sequence[float] | None = None, ignore: Ignore = ()
    ) -> None:
        """alpha: one number of at least 0 per output; by default 1 / outputs each."""
        super().__init__(strength, ignore)
        entries = () if alpha is None else alpha
        self.alpha = [
            check_strength("SensitivityDecay", part, argument="every alpha") for part in entries
        ]

    def _measure(self, y: Tensor) -> None:
        outputs = y.shape[1]
        alpha = self.alpha or [1 / outputs] * outputs
        if len(alpha) != outputs:
            expected, way_out = f"one number for each of {outputs} outputs", "pass as many"
            raise bad("SensitivityDecay, forward", "alpha", expected, len(alpha), way_out)
        trained = {name: w for name, w in self._targets.items() if w.requires_grad}
        total = {name: self._zero(weight) for name, weight in trained.items()}
        for part, output in zip(alpha, y.mean(0), strict=True):
            slopes = torch.autograd.grad(
                output, list(trained.values()), retain_graph=True, allow_unused=True
            )
            for name, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    total[name].add_(slope.abs(), alpha=part)
        for name, sensitivity in total.items():
            self._add(name, sensitivity)
