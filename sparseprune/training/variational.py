"""Sparse variational dropout: every weight learns how much noise it bears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseprune.criteria.statistics import Layer
from sparseprune.criteria.statistics.following import first_tensor
from sparseprune.errors import bad, check_count
from sparseprune.masks import Masks
from sparseprune.selection import Ignore
from sparseprune.training.beside import Extended, MethodHook

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""Constants of the approximation of the KL divergence (Molchanov et al., 2017, eq. 14)."""

EPS = 1e-8
"""Inside log(theta^2 + EPS) and sqrt(variance + EPS), as in the authors' code."""


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """log alpha = log sigma^2 - log theta^2: the noise of a weight, relative to it."""
    return log_sigma2 - (theta.to(log_sigma2.dtype).square() + EPS).log()


def kl_divergence(log_alpha: Tensor) -> Tensor:
    """KL(q || p) ~ k1 - k1 sigmoid(k2 + k3 log alpha) + 0.5 log(1 + 1 / alpha), per weight.

    q = N(theta, alpha theta^2), p log-uniform. Zero for alpha -> infinity, where the weight is
    noise only. (Molchanov, Ashukha & Vetrov, 2017, arXiv:1701.05369, eq. 14.)
    """
    return K1 * torch.sigmoid(-(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


class VariationalDropout(Extended):
    """w = theta (1 + sqrt(alpha) eps), eps ~ N(0, 1): weights with log alpha > 3 go.

    Minimises L(w) + 1/N sum KL(alpha) over theta, the module's own weight, and log sigma^2 =
    log(alpha theta^2), a parameter `log_sigma2` beside it (the additive parametrisation, whose
    gradients do not grow with alpha). Noise is drawn for pre-activations (local
    reparametrisation): in train mode a layer gives
    f(x, theta) + sqrt(f(x^2, sigma^2) + 1e-8) eps. In eval mode it gives f(x, theta); what
    `finalize` will prune is still there.

    Train long, with Adam, from random or trained weights. (Molchanov, Ashukha & Vetrov, 2017,
    arXiv:1701.05369; local reparametrisation: Kingma et al., 2015, arXiv:1506.02557.)

    Attributes:
        steps: of the optimizer so far; set it when a training is resumed.
    """

    attribute = "log_sigma2"

    def __init__(
        self,
        samples: int,
        warmup: tuple[int, int] = (0, 0),
        threshold: float = 3.0,
        initial: float = -10.0,
        clip: float = 8.0,
        lr: float | None = None,
        ignore: Ignore = (),
    ) -> None:
        """
        samples: N, of the training set; the loss is a mean over samples.
        warmup: steps at which the KL term's weight leaves 0 and reaches 1, linear in between
            (the authors: epochs 5 and 20).
        threshold: of log alpha, above which a weight is pruned.
        initial: log sigma^2 at the start.
        clip: log alpha is held within -clip and clip while training.
        lr: of log sigma^2; by default that of the optimizer's first group.
        ignore: modules to leave alone, as for `prune`.
        """
        super().__init__(lr, ignore)
        check_count("VariationalDropout", "samples", samples)
        first, last = warmup
        if not 0 <= first <= last:
            way_out = "pass steps, e.g. (500, 2000)"
            raise bad("VariationalDropout", "warmup", "(begin, end) in order", warmup, way_out)
        if not clip > 0:
            way_out = "pass 8, or math.inf for none"
            raise bad("VariationalDropout", "clip", "positive", clip, way_out)
        self.samples, self.warmup, self.threshold = samples, (first, last), threshold
        self.initial, self.clip = initial, clip
        self.steps = 0

    def log_alphas(self) -> dict[str, Tensor]:
        """Weight name -> log alpha now, not clipped; float32 at least, without gradient."""
        with torch.no_grad():
            return {n: log_alpha(self.layers[n].weight, own) for n, own in self._own().items()}

    def penalty(self) -> Tensor:
        """warm-up / N * sum of KL over all weights: a scalar."""
        total = super().penalty()
        for name, own in self._own().items():
            alpha = log_alpha(self.layers[name].weight, own).clamp(-self.clip, self.clip)
            total = total + kl_divergence(alpha).sum()
        return total * (self._share() / self.samples)

    def _share(self) -> float:
        """The weight of the KL term at this step, in [0, 1]."""
        first, last = self.warmup
        if self.steps >= last:
            return 1.0
        return max(0.0, (self.steps - first) / (last - first)) if last > first else 0.0

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super()._begin(model, optimizer)
        self.steps = 0

    def _initial(self, layer: Layer) -> Tensor:
        return torch.full_like(layer.weight, self.initial, dtype=layer.dtype)

    def _follow(self, module: nn.Module) -> list[RemovableHandle]:
        return [module.register_forward_hook(_Noise(self.clip), with_kwargs=True)]

    def _after_step(self) -> None:
        self.steps += 1

    def _end(self) -> Masks:
        for name, alpha in self.log_alphas().items():
            with torch.no_grad():
                self.layers[name].weight.masked_fill_(alpha > self.threshold, 0)
        return super()._end()


@dataclass(frozen=True)
class _Noise(MethodHook):
    """The hook: adds the noise of the pre-activations in train mode."""

    clip: float

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        deviation = (variance(module, first_tensor(args, kwargs), self.clip) + EPS).sqrt()
        return output + (deviation * torch.randn_like(deviation)).to(output.dtype)


def variance(module: nn.Module, x: Tensor, clip: float) -> Tensor:
    """f(x^2, sigma^2), sigma^2 = alpha theta^2 with log alpha clipped; float32 at least.

    The variance of every pre-activation of a Linear or convolution with a `log_sigma2`.
    """
    log_sigma2 = module.get_parameter("log_sigma2")
    log_theta2 = (module.get_parameter("weight").to(log_sigma2.dtype).square() + EPS).log()
    sigma2 = ((log_sigma2 - log_theta2).clamp(-clip, clip) + log_theta2).exp()
    squares = x.to(log_sigma2.dtype).square()
    with torch.autocast(x.device.type, enabled=False):  # squares overflow float16
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            spread: Tensor = module._conv_forward(squares, sigma2, None)
            return spread
        return F.linear(squares, sigma2)
