"""Data in: every form of a batch and a loss gives the same score, or a clear refusal."""

from __future__ import annotations

import re
from collections import UserDict

import pytest
from hand import HALVES, T3, X3, close, half_square, net
from prune_models import same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import sparseprune as sp
from sparseprune.criteria import weight_scores


class Wrapped(nn.Module):
    """Takes keywords and returns its own loss, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> object:
        logits = self.inner(x)
        loss = None if labels is None else half_square(logits, labels)
        return type("Output", (), {"logits": logits, "loss": loss})()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a + b)


def test_all_forms_of_data_give_the_same_score() -> None:
    forms: dict[str, tuple[nn.Module, object, object]] = {
        "one batch": (net(), [(X3, T3)], half_square),
        "unequal batches": (net(), HALVES, half_square),
        "lists": (net(), [[X3, T3]], half_square),
        "loader": (net(), DataLoader(TensorDataset(X3, T3), batch_size=2), half_square),
        "callable": (net(), lambda: iter(HALVES), half_square),
        "iterator": (net(), iter(HALVES), half_square),
        "dict": (Wrapped(), [{"x": X3, "labels": T3}], None),
        "dict and loss": (
            Wrapped(),
            [{"x": X3[:2], "labels": T3[:2]}, {"x": X3[2:], "labels": T3[2:]}],
            lambda out, batch: half_square(out.logits, batch["labels"]),
        ),
        "mapping": (Wrapped(), [UserDict(x=X3, labels=T3)], None),
        "positional": (Pair(), [((X3 / 2, X3 / 2), T3)], half_square),
        "keywords": (Wrapped(), [({"x": X3}, T3)], lambda out, t: half_square(out.logits, t)),
        "tensor": (net(), [X3], lambda out, x: half_square(out, T3)),
    }
    reference = net()
    half_square(reference(X3), T3).backward()
    expected = (reference[0].weight * reference[0].weight.grad).detach().abs()
    for form, (model, data, loss) in forms.items():
        first, _ = weight_scores(model, "taylor", data, loss).values()
        assert close(first, expected), form


def test_data_that_can_be_read_once_are_refused_for_two_passes() -> None:
    model = net()
    with pytest.raises(ValueError, match="data must be readable 2 times, got an iterator"):
        sp.prune(model, 0.5, "grasp", data=iter(HALVES), loss=half_square)
    sp.prune(model, 0.5, "grasp", data=lambda: iter(HALVES), loss=half_square)


def nan_gradient(output: Tensor, target: Tensor) -> Tensor:
    return (output - output.detach()).abs().sum().sqrt()  # sqrt'(0) = inf, times 0


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no data": ({"data": None}, "criterion 'taylor': data must be an iterable of batches"),
    "empty": ({"data": []}, "data must be at least one batch, got none"),
    "used up": ({"data": iter(())}, "an iterator can be read only once"),
    "a tensor": ({"data": X3}, "got Tensor; wrap a single batch in a list: data=[batch]"),
    "a dict": ({"data": {"x": X3}}, "got dict; wrap a single batch in a list"),
    "a number": ({"data": 3}, "data must be an iterable of batches"),
    "batch of numbers": ({"data": [3]}, "data must be batches of tensors, (inputs, target)"),
    "three parts": ({"data": [(X3, T3, T3)]}, "got 3 items; inputs may be a tuple of positional"),
    "empty batch": ({"data": [(X3[:0], T3[:0])]}, "data must be batches with samples"),
    "no loss": ({"loss": None}, "loss must be a callable (output, target) -> scalar, got none"),
    "vector loss": ({"loss": lambda o, t: o[:, 0]}, "the loss must be a scalar tensor, got shape"),
    "float loss": ({"loss": lambda o, t: 1.0}, "the loss must be a scalar tensor, got float"),
    "nan loss": ({"loss": lambda o, t: o.sum() * float("nan")}, "the loss must be finite, got nan"),
    "detached": ({"loss": lambda o, t: o.sum().detach()}, "the loss must be differentiable"),
    "nan gradient": ({"loss": nan_gradient}, "gradient of the loss by '0.weight' must be finite"),
    "trajectory": (
        {"criterion": "movement"},
        "data must be a Trajectory of the training, got list",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_and_losses_leave_the_model_alone(case: str) -> None:
    arguments, message = REFUSED[case]
    model = net()
    given = {"criterion": "taylor", "data": HALVES, "loss": half_square, **arguments}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        sp.prune(model, 0.5, **given)
    assert same_bits(model, net())


def test_parametrised_weights_are_refused_aloud() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"'0\.weight' must be a plain parameter, got one made by"):
        sp.prune(model, 0.5, "taylor", data=HALVES, loss=half_square)


def test_a_layer_that_is_not_called_is_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match=r"layer of 'spare\.weight' must be called by the model"):
        weight_scores(Unused(), "wanda", [X3])
    scores = weight_scores(Unused(), "taylor", [(X3, T3)], half_square)
    assert not scores["spare.weight"].any()  # no part in the loss: nothing lost
