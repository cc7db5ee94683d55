"""L1 and L2: a penalty on the weights, or its proximal step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.selection import Ignore, convolution_groups
from sparseprune.training.method import Method, check_strength


class Penalty(Method):
    """J = L + strength * R, R a sum over the weights. A subclass gives `_value` and `_shrink_`.

    With `proximal=True`, `penalty()` is 0, and after each step of the optimizer, of learning rate
    lr, the weights become the minimum over v of 1/2 ||v - w||^2 + lr * strength * R(v). That is
    the proximal gradient method where the step is plain gradient descent; after other optimizers
    it is decoupled from their scaling, as AdamW decouples its decay.

    With accumulated gradients add `penalty()` to one loss per step, or divide it as the losses.
    Biases are not penalised. Frozen weights stay as they are.
    """

    def __init__(self, strength: float, proximal: bool = False, ignore: Ignore = ()) -> None:
        """strength: lambda, finite and at least 0; may be assigned anew while training.

        proximal: as above. ignore: modules to leave alone, as for `prune`.
        """
        super().__init__(ignore)
        self.strength = check_strength(type(self).__name__, strength)
        self.proximal = proximal
        self._groups: dict[nn.Parameter, int] = {}

    def penalty(self) -> Tensor:
        """strength * R(weights that train), a scalar; 0 if proximal."""
        total = super().penalty()
        if self.proximal:
            return total
        for weight, groups in self._groups.items():
            if weight.requires_grad:
                wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
                total = total + self.strength * self._value(wide, groups).to(total.device)
        return total

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        groups = convolution_groups(model)
        weights = self._trained(model, optimizer)
        self._groups = {weight: groups.get(name, 1) for name, weight in weights.items()}

    def _after_step(self) -> None:
        _, optimizer = self._prepared("step")
        for group in optimizer.param_groups if self.proximal else ():
            for weight in group["params"]:
                if weight.requires_grad and weight in self._groups:
                    self._shrink_(weight, float(group["lr"]) * self.strength, self._groups[weight])

    def _value(self, weight: Tensor, groups: int) -> Tensor:
        """R of one weight, at least float32, differentiable; groups: of its convolution."""
        raise NotImplementedError

    def _shrink_(self, weight: Tensor, by: float, groups: int) -> None:
        """weight <- argmin over v of 1/2 ||v - weight||^2 + by * R(v), in place."""
        raise NotImplementedError


class L1(Penalty):
    """R = sum |w|; proximal: w <- sign(w) [|w| - lr * strength]_+, the soft threshold.

    (Tibshirani, 1996, the lasso; Han et al., 2015, arXiv:1506.02626, section 3.1, compare it with
    L2: better before retraining, worse after; proximal step: Daubechies et al., 2004.)
    Gradients alone seldom reach zero: pass proximal=True for exact zeros, or prune afterwards.
    """

    def _value(self, weight: Tensor, groups: int) -> Tensor:
        return weight.abs().sum()

    def _shrink_(self, weight: Tensor, by: float, groups: int) -> None:
        weight.sub_(weight.clamp(-by, by))  # w - w is +0.0, never -0.0


class L2(Penalty):
    """R = sum w^2; proximal: w <- w / (1 + 2 * lr * strength).

    (Han et al., 2015, arXiv:1506.02626, section 3.1: the better one to retrain with.) The penalty
    is SGD's weight_decay = 2 * strength, for the weights alone. Gives small weights, no zeros.
    """

    def _value(self, weight: Tensor, groups: int) -> Tensor:
        return weight.square().sum()

    def _shrink_(self, weight: Tensor, by: float, groups: int) -> None:
        weight.div_(1 + 2 * by)
