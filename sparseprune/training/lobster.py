"""LOBSTER: weights that the loss does not feel decay."""

from __future__ import annotations

from torch import Tensor, nn

from sparseprune.selection import Ignore
from sparseprune.training.decay import InsensitiveDecay


class Lobster(InsensitiveDecay):
    """w <- w - eta * dL/dw - strength * w * [1 - S] * P(1 - S), S = |dL/dw|, P the unit step.

    (Tartaglione et al., 2020, LOBSTER, arXiv:2011.09905.) eta * dL/dw stands for the step of any
    optimizer; [1 - S] P(1 - S) = [1 - S]_+, as the authors' code computes it
    (github.com/EIDOSLAB/LOBSTER, which also decays biases and takes w after the step; here w is
    that of the formula). A weight without a gradient in this step stays as it is.
    """

    def __init__(self, strength: float, rescaled: bool = False, ignore: Ignore = ()) -> None:
        """rescaled: S = |dL/dw| / max |dL/dw| of each layer, at least 1e-10: in [0, 1] whatever
        the scale of the loss, as an option of the authors' library EIDOSearch.
        """
        super().__init__(strength, ignore)
        self.rescaled = rescaled

    def _sensitivity(self, name: str, weight: nn.Parameter) -> Tensor | None:
        if weight.grad is None or not weight.numel():
            return None
        size = weight.grad.abs()
        return size / size.max().clamp(min=1e-10) if self.rescaled else size
